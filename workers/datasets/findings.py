"""The good rows of a file, and where each finding lies."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from app.files.rows import BadRow, parse_row
from app.files.rules import read_lines
from workers.datasets.checks import Numbered

MAX_LINES = 100


class Findings:
    """How many rows have each code, and the first MAX_LINES lines of them."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self._lines: dict[str, list[int]] = {}

    def add(self, line: int, codes: Iterable[str]) -> None:
        for code in codes:
            self.rows[code] += 1
            lines = self._lines.setdefault(code, [])
            if len(lines) < MAX_LINES:
                lines.append(line)

    def as_json(self) -> dict[str, dict[str, object]]:
        return {code: {"rows": count, "lines": self._lines[code]} for code, count in self.rows.most_common()}

    def without_usual_language(self) -> Self:
        """The language of most rows is no finding."""
        languages = [code for code in self.rows if code.startswith("language:")]
        if languages:
            del self.rows[max(languages, key=self.rows.__getitem__)]
        return self


def good_rows(path: Path) -> Iterator[Numbered]:
    """Rows that can be read; what is wrong with the others is in the validation's report."""
    with path.open("rb") as stream:
        for number, line in read_lines(stream):
            try:
                row = parse_row(line)
            except BadRow:
                continue
            yield Numbered(number, row, row.wording())


def count_lines(path: Path) -> int:
    """Quickly; the last may lack its end."""
    with path.open("rb") as stream:
        return 1 + sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 20), b""))
