"""A CSV or Parquet table as JSONL rows, read piece by piece. Runs in a process with limits: see `child`."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from app.files.columns import Layout, layout_of, row_of
from app.files.rules import BOM, MAX_LINE_BYTES, MAX_ROWS

BATCH = 256
MAX_COLUMNS = 1_000


class Refused(Exception):
    """What is wrong with the file, for its owner."""


def convert(format: str, source: Path, target: Path, max_bytes: int) -> dict[str, Any]:
    """Write `target`; returns what was done. Raises Refused, saying in which line or row."""
    read = {"csv": read_csv, "parquet": read_parquet}[format]
    written = rows = 0
    with source.open("rb") as stream, target.open("wb") as out:
        layout, table = read(stream)
        for where, cells in table:
            line = json_line(layout, where, cells)
            rows, written = rows + 1, written + len(line)
            if rows > MAX_ROWS or written > max_bytes:
                raise Refused(f"{where}: the table holds more than {MAX_ROWS} rows or {max_bytes} bytes")
            out.write(line)
    if not rows:
        raise Refused("the table has no rows")
    return {"format": format, "rows": rows, "columns": layout.used, "ignored_columns": shown(layout.ignored)}


def json_line(layout: Layout, where: str, cells: Mapping[str, Any]) -> bytes:
    try:
        line = json.dumps(row_of(layout, cells), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise Refused(f"{where}: the text holds half a character (a lone surrogate)") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(f"{where}: {error}") from error
    if len(line) > MAX_LINE_BYTES:
        raise Refused(f"{where}: the row is longer than {MAX_LINE_BYTES} bytes")
    return line


def checked_layout(columns: list[str]) -> Layout:
    if len(columns) > MAX_COLUMNS:
        raise Refused(f"the table has more than {MAX_COLUMNS} columns")
    try:
        return layout_of(columns)
    except ValueError as error:
        raise Refused(str(error)) from error


def shown(names: tuple[str, ...]) -> list[str]:
    """Names of columns as a report may hold them."""
    return ["".join(letter for letter in name[:64] if letter.isprintable()) for name in names[:50]]


Table = tuple[Layout, Iterator[tuple[str, Mapping[str, Any]]]]


def read_csv(stream: IO[bytes]) -> Table:
    """Python's own reader, not Arrow's: it guesses no types ("007" stays text) and knows its line."""
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(csv_lines(stream), strict=True)
    names = next(reader, [])
    return checked_layout(names), csv_rows(reader, names)


def csv_rows(reader: Any, names: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Numbered by line of the file."""
    try:
        for cells in reader:
            if cells and len(cells) != len(names):
                raise Refused(f"line {reader.line_num}: {len(cells)} cells under {len(names)} columns")
            if cells:
                yield f"line {reader.line_num}", dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise Refused(f"line {reader.line_num}: {error}") from error


def csv_lines(stream: IO[bytes]) -> Iterator[str]:
    """Raises Refused at a line that is too long or not UTF-8."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise Refused(f"line {number}: the line is longer than {MAX_LINE_BYTES} bytes")
        if number == 1 and line.startswith(BOM):
            line = line[len(BOM) :]
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused(f"line {number}: the line is not UTF-8") from error


def read_parquet(stream: IO[bytes]) -> Table:
    """Only the columns that rows need; texts stay dictionaries, so that a value stored once is held once."""
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(stream)
        layout = checked_layout(schema.names)
        texts = [name for name in layout.used if is_text(schema.field(name).type)]
        stream.seek(0)
        file = parquet.ParquetFile(stream, read_dictionary=texts, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused(f"not a readable Parquet file: {first_line(error)}") from error
    if file.metadata.num_rows > MAX_ROWS:
        raise Refused(f"the table holds more than {MAX_ROWS} rows")
    return layout, parquet_rows(file, layout)


def is_text(kind: Any) -> bool:
    from pyarrow import types

    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary))


def parquet_rows(file: Any, layout: Layout) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow

    number = 0
    try:
        for batch in file.iter_batches(BATCH, columns=layout.used, use_threads=False):
            columns = [batch.column(name) for name in layout.used]
            for at in range(batch.num_rows):
                number += 1
                yield (
                    f"row {number}",
                    {name: column[at].as_py() for name, column in zip(layout.used, columns, strict=True)},
                )
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused(f"row {number + 1}: not readable: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [""])[0][:200]
    return "".join(letter for letter in line if letter.isprintable())
