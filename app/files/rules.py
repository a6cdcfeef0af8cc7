"""What a file may be called and be for, and how a training file is read line by line. Pure."""

import json
import re
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from app.errors import InvalidFilename, InvalidTrainingFile, InvalidValue

PURPOSES = frozenset({"fine-tune", "batch", "assistants", "vision", "user_data", "evals"})
FINE_TUNE = "fine-tune"
RESULTS = "fine-tune-results"
MAX_NAME = 255
MAX_LINE_BYTES = 1024 * 1024
MAX_ROWS = 1_000_000
MIN_LIFETIME, MAX_LIFETIME = 3_600, 2_592_000
BOM = b"\xef\xbb\xbf"
# Browsers and HTTP libraries spell control characters of a file name as %00 to %1F.
FORBIDDEN = re.compile(r"[/\\\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|%[01][0-9a-fA-F]")


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
        if number > MAX_ROWS:
            raise bad_line(number, f"the file has more than {MAX_ROWS} lines")
        if line.strip():
            yield number, line


def parse_object(line: bytes) -> dict[str, Any]:
    """One line as a JSON object. Raises ValueError with a sentence that says what is wrong."""
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=refuse_constant, object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise ValueError("the line is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("the line is not valid JSON") from error
    if not isinstance(value, dict):
        raise ValueError("the line is not a JSON object")
    return value


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON leaves open which of two equal names counts, so neither does."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name occurs twice")
    return made


def bad_line(number: int, what: str) -> InvalidTrainingFile:
    return InvalidTrainingFile(f"line {number}: {what}", param="file")
