"""A new file without the rows that chosen rules drop, and an account of what went."""

import json
from collections import Counter
from typing import Any

from app.files.rows import CONTROL, BadRow, Kind, parse_row
from app.files.rules import parse_object, read_lines
from workers.datasets.checks import Check, Numbered, make
from workers.datasets.child import Work
from workers.datasets.convert import Refused
from workers.datasets.findings import Findings, count_lines, good_rows
from workers.datasets.leakage import Leakage

# Which check finds what a rule drops; duplicates last, so that a row that goes is not the one its twin repeats.
CHECKS = {
    "personal_data": "personal_data",
    "secrets": "secrets",
    "profanity": "profanity",
    "duplicates": "duplicates",
    "near_duplicates": "duplicates",
}
CODES = {
    "duplicates": {"duplicate"},
    "near_duplicates": {"duplicate", "near_duplicate"},
    "personal_data": {"personal_data"},
    "secrets": {"secret"},
    "profanity": {"profanity"},
    "leakage": {"leak", "near_leak", "leaked_question"},
}


class Cleaner:
    """Decides row by row. Rows that cannot be read, or are of another kind than the first, always go."""

    def __init__(self, work: Work) -> None:
        self.rules = [str(each) for each in list(work.options["rules"])]  # type: ignore[arg-type]
        self.language = work.options.get("language")
        self.kind: Kind | None = None
        total = count_lines(work.source)
        self.checks: list[Check] = []
        if self.language:
            self.checks.append(make("language", total, every_row=True))
        if work.against is not None:
            self.checks.append(Leakage(good_rows(work.against), count_lines(work.against)))
        names = dict.fromkeys(check for rule, check in CHECKS.items() if rule in self.rules)
        self.checks += [make(name, total, every_row=True) for name in names]
        self.dropping = {code for rule in self.rules for code in CODES.get(rule, ())}

    def reasons(self, number: int, line: bytes) -> list[str]:
        """Why this row goes; the first is what counts."""
        try:
            row = parse_row(line)
        except BadRow as error:
            return [error.code]
        self.kind = self.kind or row.kind
        if row.kind is not self.kind:
            return ["mixed_kinds"]
        numbered = Numbered(number, row, row.wording())
        for check in self.checks:
            codes = [code for code in check.codes(numbered) if self.drops(code)]
            if codes:
                return codes
        return []

    def drops(self, code: str) -> bool:
        if code.startswith("language:"):
            return code != f"language:{self.language}"
        return code in self.dropping


def clean(work: Work) -> dict[str, Any]:
    """Write `target`. Raises Refused when no row is left."""
    if work.target is None:
        raise ValueError("a cleaning needs a target")
    cleaner, dropped = Cleaner(work), Findings()
    kept = Counter[str]()
    with work.source.open("rb") as stream, work.target.open("wb") as out:
        for number, line in read_lines(stream):
            mended = mend(line) if "control_characters" in cleaner.rules else line
            if reasons := cleaner.reasons(number, mended):
                dropped.add(number, reasons[:1])
                continue
            kept["rows"] += 1
            kept["mended"] += mended != line
            out.write(mended.rstrip(b"\r\n") + b"\n")
    if not kept["rows"]:
        raise Refused("no row would be left")
    return {"kept": kept["rows"], "mended": kept["mended"], "dropped": dropped.as_json()}


def mend(line: bytes) -> bytes:
    """The row with control characters taken out of its texts; unchanged when it has none or cannot be read."""
    try:
        given = parse_object(line)
    except ValueError:
        return line
    mended = without_control(given)
    return line if mended == given else json.dumps(mended).encode()


def without_control(value: Any) -> Any:
    if isinstance(value, str):
        return CONTROL.sub("", value)
    if isinstance(value, list):
        return [without_control(each) for each in value]
    if isinstance(value, dict):
        return {name: without_control(each) for name, each in value.items()}
    return value
