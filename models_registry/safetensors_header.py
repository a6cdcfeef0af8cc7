"""Reads the header of a safetensors file strictly, before anything else touches the file.

Format: https://github.com/huggingface/safetensors#format — 8 bytes header length (little endian), JSON, then the
tensors' bytes without overlap or hole.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

from models_registry.errors import InvalidSafetensors, UnsafeFormat

MAX_HEADER_BYTES = 1024 * 1024
MAX_TENSORS = 10_000
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
PICKLE_OR_ZIP = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04", b"PK\x05\x06")


@dataclass(frozen=True)
class TensorEntry:
    """`begin` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of the file by name. Raises UnsafeFormat, InvalidSafetensors."""
    size = path.stat().st_size
    with path.open("rb") as source:
        prefix = source.read(8)
        if prefix.startswith(PICKLE_OR_ZIP):
            raise UnsafeFormat("That is a pickle or an archive; send safetensors.")
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise InvalidSafetensors("That is not a safetensors file.")
        header = parse_header(source.read(length))
    entries = {name: entry(name, value, 8 + length) for name, value in header.items()}
    check_coverage(entries, 8 + length, size)
    return entries


def parse_header(raw: bytes) -> dict[str, object]:
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidSafetensors("The safetensors header is not JSON.") from error
    if not isinstance(header, dict):
        raise InvalidSafetensors("The safetensors header is not an object.")
    header.pop("__metadata__", None)
    if not 1 <= len(header) <= MAX_TENSORS:
        raise InvalidSafetensors(f"A file holds 1 to {MAX_TENSORS} tensors.")
    return header


def entry(name: str, value: object, start: int) -> TensorEntry:
    """Raises InvalidSafetensors unless dtype, shape and offsets agree."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise InvalidSafetensors(f"Tensor {name[:80]!r} has a malformed entry.")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise InvalidSafetensors(f"Tensor {name[:80]!r} has another dtype than F32, F16 or BF16.")
    if not (is_naturals(shape) and is_naturals(offsets) and len(offsets) == 2 and len(shape) <= 8):
        raise InvalidSafetensors(f"Tensor {name[:80]!r} has a malformed entry.")
    if offsets[1] - offsets[0] != prod(shape) * ITEM_BYTES[dtype]:
        raise InvalidSafetensors(f"Tensor {name[:80]!r} has a size that its shape does not explain.")
    return TensorEntry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def is_naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**48 for item in value)


def check_coverage(entries: dict[str, TensorEntry], start: int, size: int) -> None:
    position = start
    for each in sorted(entries.values(), key=lambda item: (item.begin, item.end)):
        if each.begin != position:
            raise InvalidSafetensors("The tensors overlap or leave a hole.")
        position = each.end
    if position != size:
        raise InvalidSafetensors("The file does not end with its last tensor.")
