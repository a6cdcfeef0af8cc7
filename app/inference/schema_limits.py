"""Bounds on JSON schemas, checked before anything is held or compiled; what only compiling finds, the worker says.

Pure.
"""

import json
from collections.abc import Iterator
from typing import Any

from app.errors import InvalidSchema

MAX_BYTES = 64 * 1024  # of all schemas of a request together
MAX_DEPTH = 40  # nested JSON values; a level of the described data takes two or three
MAX_PROPERTIES = 1_000
MAX_ENUM_VALUES = 1_000
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def check_schema(schema: object, param: str) -> int:
    """Its size in bytes. Raises InvalidSchema for what is not an object, is too large, or points outside itself."""
    if not isinstance(schema, dict):
        raise InvalidSchema("A schema must be a JSON object.", param=param)
    properties = values = 0
    for depth, node in walk(schema):
        if depth > MAX_DEPTH:
            raise InvalidSchema(f"The schema is nested deeper than {MAX_DEPTH} levels.", param=param)
        if not isinstance(node, dict):
            continue
        if any(isinstance(node.get(key), str) and not node[key].startswith("#") for key in REFERENCES):
            raise InvalidSchema("A schema may refer to its own parts only ($ref beginning with #).", param=param)
        properties += len(found) if isinstance(found := node.get("properties"), dict) else 0
        values += len(found) if isinstance(found := node.get("enum"), list) else 0
    if properties > MAX_PROPERTIES or values > MAX_ENUM_VALUES:
        raise InvalidSchema(
            f"A schema may have {MAX_PROPERTIES} properties and {MAX_ENUM_VALUES} enum values in all.", param=param
        )
    return check_bytes(len(json.dumps(schema, ensure_ascii=False).encode()), param)


def check_bytes(size: int, param: str) -> int:
    if size > MAX_BYTES:
        raise InvalidSchema(f"The schemas of a request may take {MAX_BYTES} bytes.", param=param)
    return size


def walk(value: Any) -> Iterator[tuple[int, Any]]:
    """Every value within, with its depth; the request guard has bounded that depth for us."""
    waiting = [(1, value)]
    while waiting:
        depth, node = waiting.pop()
        yield depth, node
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        waiting += [(depth + 1, child) for child in children]
