"""The quick look at a training file before it is taken in; everything else waits for the worker. Pure."""

import csv
from itertools import islice
from typing import IO

from app.errors import InvalidTrainingFile
from app.files.columns import layout_of
from app.files.rows import BadRow, Kind, kind_of
from app.files.rules import BOM, MAX_LINE_BYTES, bad_line, parse_object, read_lines

PARQUET = b"PAR1"


def check_training_structure(filename: str, stream: IO[bytes]) -> None:
    """By the ending of its name: a CSV or Parquet table, else JSONL. Raises InvalidTrainingFile."""
    stream.seek(0)
    match table_format(filename):
        case "parquet":
            check_parquet(stream)
        case "csv":
            check_csv(stream)
        case _:
            check_lines(stream)


def table_format(filename: str) -> str | None:
    """`csv`, `parquet`, or None for JSONL."""
    ending = filename.rpartition(".")[2].lower()
    return ending if ending in ("csv", "parquet") else None


def check_lines(stream: IO[bytes]) -> int:
    """The number of rows: UTF-8, one JSON object a line, all with the fields of one kind."""
    kind: Kind | None = None
    rows = 0
    for number, line in read_lines(stream):
        try:
            found = kind_of(given := parse_object(line))
        except (ValueError, BadRow) as error:
            raise bad_line(number, str(error)) from error
        if found is Kind.CHAT and (not isinstance(given["messages"], list) or not given["messages"]):
            raise bad_line(number, "the object has no list of 'messages'")
        kind = kind or found
        if found is not kind:
            raise bad_line(number, f"a row of kind '{found}' in a file of kind '{kind}'")
        rows += 1
    if not rows:
        raise InvalidTrainingFile("The file has no rows.", param="file")
    return rows


def check_parquet(stream: IO[bytes]) -> None:
    """Only that it says to be one: its insides are opened in a process with limits."""
    head = stream.read(len(PARQUET))
    size = stream.seek(0, 2)
    stream.seek(max(len(PARQUET), size - len(PARQUET)))
    if head != PARQUET or stream.read() != PARQUET:
        raise InvalidTrainingFile("The file is not a Parquet file.", param="file")


def check_csv(stream: IO[bytes]) -> None:
    """Its first line names columns that make rows."""
    line = stream.readline(MAX_LINE_BYTES)
    if line.startswith(BOM):
        line = line[len(BOM) :]
    try:
        text = line.decode("utf-8")
        layout_of(next(islice(csv.reader([text], strict=True), 1), []))
    except UnicodeDecodeError as error:
        raise bad_line(1, "the line is not UTF-8") from error
    except (csv.Error, ValueError) as error:
        raise bad_line(1, str(error)) from error
