"""Requests that are nearly right: a door's own request with a few things replaced, dropped, added or broken."""

import json
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

from tests.doors import DOORS, World, fill

NUMBERS = [0, -1, 1, 2, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, 5e-324]
TEXTS = [
    "",
    " ",
    "\0",
    "\x1f",
    "\ud800",
    "\u202e",
    "é",
    "北京",
    "🙂",
    "%00",
    "%2e%2e/",
    "../../etc/passwd",
    "'; --",
    "<b>",
]
TEXTS += [
    "<|im_end|>",
    "{{7*7}}",
    "null",
    "a" * 300,
    "a" * 70_000,
    "-" * 26,
    "auto",
    "1e9",
    "ft:a:b:c:d",
    "a/b@1",
    "@",
    ":",
]
RAW = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"0",
    b'"x"',
    b'{"a":1,"a":2}',
    b"[" * 10_000,
    b'{"a":NaN}',
    b'{"a":1e400}',
    b"\xff\xfe{\0}\0",
]
RAW += [
    b'{"a":"\xed\xa0\x80"}',
    b'{"a":"\\ud800"}',
    b'{"a":"\\u0000"}',
    b'{"a":' + b"9" * 5000 + b"}",
    b"\xef\xbb\xbf{}",
]
KINDS = [
    "application/json",
    "text/plain",
    "multipart/form-data",
    "multipart/form-data; boundary=x",
    "",
    "application/xml",
]
KINDS += ["application/x-www-form-urlencoded", "application/json; charset=utf-16"]

MAX_URL_TEXT = 1_000  # httpx sends no address past 64 KB

texts = st.sampled_from(TEXTS) | st.text(max_size=20)
scalars = st.none() | st.booleans() | st.sampled_from(NUMBERS) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


def fields_of(schema: dict[str, Any], door: tuple[str, str]) -> tuple[list[str], list[str]]:
    """Names of the query's and of the body's fields, nested ones too, as the OpenAPI document tells."""
    about = schema["paths"][door[1]][door[0].lower()]
    query = [each["name"] for each in about.get("parameters", []) if each["in"] == "query"]
    names: set[str] = set()
    seen: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, list):
            for each in node:
                walk(each)
        elif isinstance(node, dict):
            if (reference := node.get("$ref")) and reference not in seen:
                seen.add(reference)
                walk(schema["components"]["schemas"][reference.rpartition("/")[2]])
            names.update(node.get("properties", {}))
            walk(list(node.values()))

    walk(about.get("requestBody", {}))
    return query, sorted(names)


@st.composite
def requests(
    draw: st.DrawFn, world: World, door: tuple[str, str], fields: tuple[list[str], list[str]]
) -> dict[str, Any]:
    """Keyword arguments of `httpx.Client.request`."""
    query, names = fields
    known = st.sampled_from(sorted({*world.theirs.values(), *world.random.values()}))
    path_names = {
        name: draw(texts | known) if draw(st.integers(0, 3)) == 0 else value for name, value in world.own.items()
    }
    path = door[1].format_map(
        {name: quote(value[:MAX_URL_TEXT], safe="", errors="replace") or "-" for name, value in path_names.items()}
    )
    asked = draw(
        st.dictionaries(st.sampled_from([*query, "x"]), texts | known | st.sampled_from(["1", "-1", "0"]), max_size=3)
    )
    headers = {"authorization": f"Bearer {world.stranger.key}".encode()}
    if draw(st.integers(0, 5)) == 0:
        headers["idempotency-key"] = draw(st.sampled_from([b"a", b"k" * 255, b"k" * 256, b"\xe9", b""]))
    request: dict[str, Any] = {"method": door[0], "url": path, "params": printable(asked), "headers": headers}
    if door[0] == "GET":
        return request
    if draw(st.integers(0, 5)) == 0:
        headers["content-type"] = draw(st.sampled_from(KINDS)).encode()
        return request | {"content": draw(st.sampled_from(RAW) | st.binary(max_size=40))}
    body = fill(DOORS[door].body or {}, world.own)
    if DOORS[door].files:
        files = {
            name: (draw(texts), draw(st.sampled_from(RAW))) for name in DOORS[door].files if draw(st.integers(0, 4))
        }
        body |= draw(st.dictionaries(st.sampled_from([*names, "x"]), texts | known, max_size=2))
        return request | {
            "data": printable(body),
            "files": {name: (printable_text(a), b) for name, (a, b) in files.items()},
        }
    for _ in range(draw(st.integers(0, 3))):
        body = draw(changed(body, names, values | known))
    headers["content-type"] = b"application/json"
    return request | {"content": json.dumps(body).encode()}


@st.composite
def changed(draw: st.DrawFn, body: dict[str, Any], names: list[str], new: st.SearchStrategy[Any]) -> dict[str, Any]:
    """One field set, dropped, or changed inside."""
    name = draw(st.sampled_from([*body, *names, "x"]))
    inside = body.get(name)
    if isinstance(inside, dict) and draw(st.booleans()):
        return body | {name: draw(changed(inside, names, new))}
    if isinstance(inside, list) and inside and isinstance(inside[0], dict) and draw(st.booleans()):
        return body | {name: [draw(changed(inside[0], names, new)), *inside[1:]]}
    if name in body and draw(st.integers(0, 3)) == 0:
        return {each: value for each, value in body.items() if each != name}
    return body | {name: draw(new)}


def printable(fields: dict[str, Any]) -> dict[str, str]:
    """Query and form fields travel as UTF-8, which has no lone surrogates."""
    return {printable_text(name): printable_text(str(value)) for name, value in fields.items()}


def printable_text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()[:MAX_URL_TEXT]
