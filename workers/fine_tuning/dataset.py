"""The full check of a training file: every problem with its line, every count that a price or a plan needs."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from app.errors import InvalidTrainingFile
from app.files.rules import parse_object, read_lines, row_kind
from models_registry.errors import PromptError
from models_registry.prompt import Message, Renderer
from workers.fine_tuning.recipes.rows import Row, preference_row, text_ids

ROLES = frozenset({"system", "user", "assistant"})
WARNINGS = frozenset({"duplicate", "over_context"})
MAX_PROBLEMS = 100


class BadRow(Exception):
    """`code` as the report names it; the message is for the file's owner."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Report:
    """Grows line by line. `tokens`: of all good rows, each cut to the context; `trained_tokens`: the targets."""

    rows: int = 0
    tokens: int = 0
    tokens_max: int = 0
    trained_tokens: int = 0
    duplicates: int = 0
    over_context: int = 0
    problem_count: int = 0
    errors: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)
    roles: Counter[str] = field(default_factory=Counter)
    kind: str | None = None
    unwanted: int = 0

    def add_problem(self, line: int, code: str, message: str) -> None:
        self.problem_count += 1
        self.errors += code not in WARNINGS
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append({"line": line, "code": code, "message": message})

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "tokens_max": self.tokens_max,
            "tokens_mean": round(self.tokens / self.rows, 1) if self.rows else 0.0,
            "trained_tokens": self.trained_tokens,
            "duplicates": self.duplicates,
            "over_context": self.over_context,
            "problem_count": self.problem_count,
            "problems": self.problems,
            "roles": dict(self.roles),
            "kind": self.kind,
            "unwanted": self.unwanted,
        }

    def trouble(self) -> str | None:
        """Why this file cannot be trained on; None when it can."""
        first = next((each for each in self.problems if each["code"] not in WARNINGS), None)
        if first is not None:
            return f"line {first['line']}: {first['message']} ({self.errors} lines with errors)"
        if self.errors:
            return f"{self.errors} lines with errors"
        return None if self.rows else "The file has no rows."


def validate(path: Path, renderer: Renderer, context_length: int) -> Report:
    """Read the file once, line by line; memory holds the report and a digest per row."""
    report = Report()
    with path.open("rb") as stream:
        try:
            read_all(stream, renderer, context_length, report)
        except InvalidTrainingFile as error:
            report.add_problem(1, "unreadable", error.message)
    return report


def read_all(stream: IO[bytes], renderer: Renderer, context_length: int, report: Report) -> None:
    seen: set[bytes] = set()
    for number, line in read_lines(stream):
        digest = hashlib.blake2b(line.strip(), digest_size=16).digest()
        try:
            checked = check_row(line)
            row, length = checked.render(renderer, context_length)
        except BadRow as error:
            report.add_problem(number, error.code, str(error))
            continue
        except PromptError as error:
            report.add_problem(number, "template_refused", str(error))
            continue
        report.rows += 1
        report.kind = report.kind or checked.kind
        report.unwanted += checked.given.get("unwanted", False)
        report.roles.update(message.role for message in checked.messages)
        report.tokens += len(row.ids)
        report.tokens_max = max(report.tokens_max, length)
        report.trained_tokens += sum(row.mask)
        if length > context_length and checked.kind != "text":
            report.over_context += 1
            report.add_problem(number, "over_context", f"{length} tokens are cut to the context of {context_length}")
        if digest in seen:
            report.duplicates += 1
            report.add_problem(number, "duplicate", "the same row came before")
        seen.add(digest)


@dataclass(frozen=True)
class CheckedRow:
    """`kind`: chat, preference or text; `messages`: all of them, for the counts."""

    kind: str
    given: dict[str, Any]
    messages: list[Message]

    def render(self, renderer: Renderer, context_length: int) -> tuple[Row, int]:
        """As training will see it, and its length before it is cut. Raises BadRow, PromptError."""
        if self.kind == "text":
            ids = text_ids(self.given["text"], renderer)
            return Row(ids, [True] * len(ids)), len(ids)
        if self.kind == "preference":
            row = preference_row(self.given, renderer, 2**31)
            cut = preference_row(self.given, renderer, context_length)
            if row is None or cut is None:
                raise BadRow("no_answer", "both answers need text within the model's context")
            return cut, len(row.ids)
        rendered = renderer.training(self.messages)
        return Row(rendered.ids[:context_length], rendered.mask[:context_length]), len(rendered.ids)


def check_row(line: bytes) -> CheckedRow:
    """What one line says. Raises BadRow."""
    try:
        row = parse_object(line)
    except ValueError as error:
        code = "not_an_object" if "object" in str(error) else "invalid_json"
        raise BadRow(code, str(error)) from error
    try:
        kind = row_kind(row)
    except ValueError as error:
        raise BadRow("missing_messages", str(error)) from error
    if kind == "text":
        return CheckedRow(kind, row, [])
    if kind == "preference":
        return CheckedRow(kind, row, check_preference(row))
    messages = [check_message(each) for each in row["messages"]]
    if not any(message.role == "assistant" and message.weight for message in messages):
        raise BadRow("no_assistant_message", "no assistant message to learn from")
    unwanted = row.get("unwanted", False)
    if not isinstance(unwanted, bool):
        raise BadRow("invalid_unwanted", "'unwanted' must be true or false")
    return CheckedRow(kind, row, messages)


def check_preference(row: Mapping[str, Any]) -> list[Message]:
    """The messages of a preference: a prompt, then answers by the assistant alone. Raises BadRow."""
    answers = [check_message(each) for side in ("preferred_output", "non_preferred_output") for each in row[side]]
    if any(answer.role != "assistant" for answer in answers):
        raise BadRow("unknown_role", "preferred_output and non_preferred_output hold messages of the assistant")
    return [check_message(each) for each in row["input"]["messages"]] + answers


def check_message(given: Any) -> Message:
    if not isinstance(given, dict) or given.get("role") not in ROLES:
        raise BadRow("unknown_role", f"each message needs a role out of {', '.join(sorted(ROLES))}")
    content = given.get("content")
    if not isinstance(content, str) or not content.strip():
        raise BadRow("empty_content", f"a message of the {given['role']} has no text")
    weight = given.get("weight", 1)
    if weight not in (0, 1) or isinstance(weight, float):
        raise BadRow("invalid_weight", "weight must be 0 or 1")
    return Message(given["role"], content, int(weight))
