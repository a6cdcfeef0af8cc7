"""The first door: host, size, encoding and JSON of each request are checked before any route sees it."""

import json
import math
import re
import time
from typing import Any
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.error_responses import REQUEST_ID, answer
from app.errors import (
    AppError,
    InvalidHost,
    InvalidJson,
    InvalidValue,
    RequestTooLarge,
    UnsupportedEncoding,
    UnsupportedMediaType,
)
from app.metrics import REQUEST_SECONDS, REQUESTS
from app.settings import Settings

log = structlog.get_logger(__name__)

SUSPECT = re.compile(rb"\\u(?:0000|[dD][89abAB-F])")
MAX_DIGITS = 40
MAX_DEPTH = 100
UNSAFE_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
KNOWN_METHODS = UNSAFE_METHODS | {"GET", "HEAD", "OPTIONS"}
# Asked by container health checks and Prometheus, which name this machine by address.
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


class RequestGuard:
    """ASGI middleware. Adds `x-request-id`, refuses what no route should have to think about, counts the rest.

    `uploads`: the paths that read multipart bodies as they come; any other body is small enough to hold in memory.
    """

    def __init__(self, app: ASGIApp, settings: Settings, uploads: frozenset[str] = frozenset()) -> None:
        self.app = app
        self.settings = settings.api
        self.uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = scope[REQUEST_ID] = uuid4().hex
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            guarded = await self.check(scope, receive)
        except AppError as error:
            await answer(Request(scope), error)(scope, receive, send_with_id)
        else:
            await self.app(scope, guarded, send_with_id)
        finally:
            seconds = round(time.perf_counter() - started, 4)
            log.info("request", method=scope["method"], path=scope["path"], status=status, seconds=seconds)
            route = getattr(scope.get("route"), "path", "unknown")
            REQUESTS.labels(known_method(scope["method"]), route, status).inc()
            REQUEST_SECONDS.labels(route).observe(seconds)
            structlog.contextvars.unbind_contextvars("request_id")

    async def check(self, scope: Scope, receive: Receive) -> Receive:
        """The receive channel for the route: the body already read when it is JSON, counted when it is not."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        allowed = self.settings.allowed_hosts
        if "*" not in allowed and name not in allowed and scope["path"] not in PROBES:
            raise InvalidHost("This store does not answer for that host name.")
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            raise InvalidValue("Addresses may not contain NUL.")
        if headers.get("content-encoding", "identity") != "identity":
            raise UnsupportedEncoding("Send the body without Content-Encoding.")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        upload = kind == "multipart/form-data" and scope["path"] in self.uploads
        # The pages post forms; the API speaks JSON, but for its uploads (which refuse forms that carry no file).
        form = kind in FORMS and (scope["path"] in self.uploads or not scope["path"].startswith("/v1/"))
        limit = self.settings.max_upload_bytes + 65_536 if upload else self.settings.max_body_bytes
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            raise RequestTooLarge(f"The body may have at most {limit} bytes.")
        if form or scope["method"] not in UNSAFE_METHODS:
            return counted(receive, limit)
        body = await read_all(receive, limit)
        if body:
            if kind != "application/json":
                raise UnsupportedMediaType("Send JSON with Content-Type: application/json.")
            check_json(body)
        return replay(body, receive)


def known_method(method: str) -> str:
    """A label for metrics: whatever clients invent, the series stay few."""
    return method if method in KNOWN_METHODS else "other"


def counted(receive: Receive, limit: int) -> Receive:
    """Pass chunks on, refusing once more than `limit` bytes came, whatever Content-Length said."""
    seen = 0

    async def inner() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise RequestTooLarge(f"The body may have at most {limit} bytes.")
        return message

    return inner


async def read_all(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            raise RequestTooLarge(f"The body may have at most {limit} bytes.")
    return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """Give the route the body once; after that, what the client really does (it may disconnect)."""
    given = False

    async def inner() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return inner


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidJson("A JSON object names a member twice.")
    return members


def finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InvalidValue(f"{text[:20]} is not a finite number.")
    return number


def bounded(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise InvalidValue("A number has too many digits.")
    return int(text)


def check_json(body: bytes) -> None:
    """Raise InvalidJson for what is not JSON, InvalidValue for what no field may hold (NaN, NUL, lone surrogates)."""
    try:
        # Decoded strictly here: given bytes, json.loads guesses encodings and lets lone surrogates through.
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_int=bounded, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        raise InvalidJson("The body is not valid JSON.") from error
    if SUSPECT.search(body):
        check_text(value)
    check_depth(value)


def check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise InvalidJson(f"The body is nested deeper than {MAX_DEPTH} levels.")


def check_text(value: Any) -> None:
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            stack.extend(node.keys())
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, str) and ("\0" in node or any("\ud800" <= char <= "\udfff" for char in node)):
            raise InvalidValue("Text may not contain NUL or lone surrogates.")
