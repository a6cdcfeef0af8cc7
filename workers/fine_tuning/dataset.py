"""The full check of a training file: every problem with its line, every count that a price or a plan needs."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from app.errors import InvalidTrainingFile
from app.files.rows import CONTROL, BadRow, Kind, Row, parse_row
from app.files.rules import read_lines
from models_registry.errors import PromptError
from models_registry.prompt import Renderer
from workers.fine_tuning.recipes.rows import Row as Sequence
from workers.fine_tuning.recipes.rows import preference_row, text_ids

WARNINGS = frozenset({"duplicate", "over_context", "control_characters"})
MAX_PROBLEMS = 100
PERCENTILES = (50, 90, 99)


@dataclass
class Report:
    """Grows line by line. `tokens`: of all good rows, each cut to the context; `trained_tokens`: the targets.

    `lengths`: how many sequences have so many tokens, before they are cut.
    """

    rows: int = 0
    tokens: int = 0
    tokens_max: int = 0
    trained_tokens: int = 0
    duplicates: int = 0
    over_context: int = 0
    unwanted: int = 0
    problem_count: int = 0
    errors: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)
    roles: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    kind: Kind | None = None

    def add_problem(self, line: int, code: str, message: str) -> None:
        self.problem_count += 1
        self.errors += code not in WARNINGS
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append({"line": line, "code": code, "message": message})

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "rows": self.rows,
            "tokens": self.tokens,
            "tokens_max": self.tokens_max,
            "tokens_mean": round(self.tokens / self.rows, 1) if self.rows else 0.0,
            "tokens_percentiles": {str(each): percentile(self.lengths, each) for each in PERCENTILES},
            "trained_tokens": self.trained_tokens,
            "duplicates": self.duplicates,
            "over_context": self.over_context,
            "unwanted": self.unwanted,
            "problem_count": self.problem_count,
            "problems": self.problems,
            "roles": dict(self.roles),
        }

    def trouble(self) -> str | None:
        """Why this file cannot be trained on; None when it can."""
        first = next((each for each in self.problems if each["code"] not in WARNINGS), None)
        if first is not None:
            return f"line {first['line']}: {first['message']} ({self.errors} lines with errors)"
        if self.errors:
            return f"{self.errors} lines with errors"
        return None if self.rows else "The file has no rows."


def percentile(counts: Counter[int], percent: int) -> int:
    """The smallest value that `percent` of all do not exceed; 0 of nothing."""
    wanted, seen = sum(counts.values()) * percent / 100, 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= wanted:
            return value
    return 0


def validate(path: Path, renderer: Renderer, context_length: int, obey: Callable[[], None] = lambda: None) -> Report:
    """Read the file once, line by line; memory holds the report and a digest per row. `obey` is called at each line
    and may raise.
    """
    report = Report()
    with path.open("rb") as stream:
        try:
            read_all(stream, renderer, context_length, report, obey)
        except InvalidTrainingFile as error:
            report.add_problem(1, "unreadable", error.message)
    return report


def read_all(
    stream: IO[bytes], renderer: Renderer, context_length: int, report: Report, obey: Callable[[], None]
) -> None:
    seen: set[bytes] = set()
    for number, line in read_lines(stream):
        obey()
        digest = hashlib.blake2b(line.strip(), digest_size=16).digest()
        try:
            row = row_of_kind(line, report)
            count(report, number, row, renderer, context_length)
        except BadRow as error:
            report.add_problem(number, error.code, str(error))
            continue
        except PromptError as error:
            report.add_problem(number, "template_refused", str(error))
            continue
        if CONTROL.search(row.wording()):
            report.add_problem(number, "control_characters", "the text holds control characters")
        if digest in seen:
            report.duplicates += 1
            report.add_problem(number, "duplicate", "the same row came before")
        seen.add(digest)


def row_of_kind(line: bytes, report: Report) -> Row:
    """The row of this line, of the kind of the file's first. Raises BadRow."""
    row = parse_row(line)
    report.kind = report.kind or row.kind
    if row.kind is not report.kind:
        raise BadRow("mixed_kinds", f"a row of kind '{row.kind}' in a file of kind '{report.kind}'")
    return row


def count(report: Report, number: int, row: Row, renderer: Renderer, context_length: int) -> None:
    """Add a row's lengths. Raises PromptError, BadRow before anything is added."""
    cut, length = rendered(row, renderer, context_length)
    report.rows += 1
    report.unwanted += row.unwanted
    report.roles.update(message.role for message in row.turns())
    report.lengths[length] += 1
    report.tokens_max = max(report.tokens_max, length)
    report.tokens += len(cut.ids)
    report.trained_tokens += sum(cut.mask)
    if length > context_length and row.kind is not Kind.TEXT:
        report.over_context += 1
        what = "cut to" if cut.ids else "left out for"
        report.add_problem(number, "over_context", f"{length} tokens are {what} the context of {context_length}")


def rendered(row: Row, renderer: Renderer, context_length: int) -> tuple[Sequence, int]:
    """As training will see it, and its length before it is cut. Raises BadRow, PromptError."""
    if row.kind is Kind.TEXT:
        ids = text_ids(row.text, renderer)
        return Sequence(ids, [True] * len(ids)), len(ids)
    if row.kind is Kind.PREFERENCE:
        whole = preference_row(row, renderer, 2**31)
        cut = preference_row(row, renderer, context_length)
        if whole is None:
            raise BadRow("no_answer", "both answers need text")
        # Another base may have the context for it: training on this one leaves the row out.
        return cut or Sequence([], []), len(whole.ids)
    conversation = renderer.training(row.messages)
    return Sequence(conversation.ids[:context_length], conversation.mask[:context_length]), len(conversation.ids)
