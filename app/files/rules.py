"""What a file may be called and be for, and what a training file must look like. Pure."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

from app.errors import InvalidFilename, InvalidTrainingFile, InvalidValue

PURPOSES = frozenset({"fine-tune", "batch", "assistants", "vision", "user_data", "evals"})
FINE_TUNE = "fine-tune"
RESULTS = "fine-tune-results"
MAX_NAME = 255
MAX_LINE_BYTES = 1024 * 1024
MIN_LIFETIME, MAX_LIFETIME = 3_600, 2_592_000
BOM = b"\xef\xbb\xbf"
# Browsers and HTTP libraries spell control characters of a file name as %00 to %1F.
FORBIDDEN = re.compile(r"[/\\\x00-\x1f\x7f\ud800-\udfff]|%[01][0-9a-fA-F]")


def check_filename(name: str) -> str:
    """The name as shown to its owner; the server never makes a path of it. Raises InvalidFilename."""
    if not name or name in (".", "..") or len(name) > MAX_NAME or FORBIDDEN.search(name):
        raise InvalidFilename(
            f"A file name has 1 to {MAX_NAME} characters and no slashes or control characters.", param="file"
        )
    return name


def check_purpose(purpose: str) -> str:
    if purpose not in PURPOSES:
        raise InvalidValue(f"purpose must be one of {', '.join(sorted(PURPOSES))}.", param="purpose")
    return purpose


def check_lifetime(anchor: str | None, seconds: str | None) -> int | None:
    """`expires_after` as OpenAI sends it, as seconds after creation; None when absent."""
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidValue("The only anchor is 'created_at'.", param="expires_after[anchor]")
    if seconds is None or not seconds.isdecimal() or not MIN_LIFETIME <= int(seconds[:9]) <= MAX_LIFETIME:
        raise InvalidValue(f"seconds must be from {MIN_LIFETIME} to {MAX_LIFETIME}.", param="expires_after[seconds]")
    return int(seconds)


def read_lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The numbered lines that hold anything. Raises InvalidTrainingFile at a BOM or a line past MAX_LINE_BYTES."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1 and line.startswith(BOM):
            raise bad_line(1, "the file begins with a byte order mark; save it as plain UTF-8")
        if len(line) > MAX_LINE_BYTES:
            raise bad_line(number, f"the line is longer than {MAX_LINE_BYTES} bytes")
        if line.strip():
            yield number, line


def parse_object(line: bytes) -> dict[str, Any]:
    """One line as a JSON object. Raises ValueError with a sentence that says what is wrong."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError("the line is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("the line is not valid JSON") from error
    if not isinstance(value, dict):
        raise ValueError("the line is not a JSON object")
    return value


def check_training_structure(stream: IO[bytes]) -> int:
    """Rows of a training file: UTF-8, a JSON object a line, all of one kind. Raises InvalidTrainingFile."""
    rows, first = 0, None
    for number, line in read_lines(stream):
        try:
            kind = row_kind(parse_object(line))
        except ValueError as error:
            raise bad_line(number, str(error)) from error
        first = first or kind
        if kind != first:
            raise bad_line(number, f"a row of kind '{kind}' in a file that began with kind '{first}'")
        rows += 1
    if not rows:
        raise InvalidTrainingFile("The file has no rows.", param="file")
    return rows


def row_kind(row: Mapping[str, Any]) -> str:
    """`chat`, `preference` or `text`. Raises ValueError with a sentence that says what is missing."""
    if "input" in row or "preferred_output" in row:
        asked = row.get("input")
        lists = [asked.get("messages") if isinstance(asked, dict) else None]
        lists += [row.get("preferred_output"), row.get("non_preferred_output")]
        if not all(isinstance(each, list) and each for each in lists):
            raise ValueError("a preference needs input.messages, preferred_output and non_preferred_output")
        return "preference"
    if "text" in row and "messages" not in row:
        if not isinstance(row["text"], str) or not row["text"].strip():
            raise ValueError("'text' holds no text")
        return "text"
    if not isinstance(row.get("messages"), list) or not row["messages"]:
        raise ValueError("the object has no list of 'messages'")
    return "chat"


def bad_line(number: int, what: str) -> InvalidTrainingFile:
    return InvalidTrainingFile(f"line {number}: {what}", param="file")
