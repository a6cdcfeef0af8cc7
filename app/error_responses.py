"""Every failure as OpenAI's envelope: the only place where errors become JSON."""

import json
from collections.abc import Callable, Mapping

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.errors import (
    AppError,
    BadRequest,
    InvalidCursor,
    InvalidJson,
    InvalidValue,
    MethodNotAllowed,
    MissingParameter,
    NotFound,
    Unavailable,
    UnknownParameter,
)

log = structlog.get_logger(__name__)
ErrorPage = Callable[[Request, AppError], Response | None]

# Where the request guard leaves the request's id, in the ASGI scope.
REQUEST_ID = "gptstore.request_id"


def envelope(error: AppError) -> dict[str, dict[str, str | None]]:
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def error_headers(error: AppError) -> dict[str, str]:
    """What tells the SDKs whether, and when, to try again."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.permanent:
        headers["x-should-retry"] = "false"
    return headers


def answer(request: Request, error: AppError, headers: Mapping[str, str] = {}) -> Response:
    """The envelope, or a page where a browser asked for one (app.web sets `state.error_page`)."""
    as_page: ErrorPage | None = getattr(request.app.state, "error_page", None)
    page = as_page(request, error) if as_page else None
    if page is None:
        return error_response(error, headers)
    page.headers.update(headers)
    return page


def error_response(error: AppError, headers: Mapping[str, str] = {}) -> Response:
    body = json.dumps(envelope(error), ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, error.status, {**error_headers(error), **headers}, "application/json")


def from_validation(errors: list[dict[str, object]]) -> BadRequest:
    """The first complaint of pydantic, in the store's words."""
    first = errors[0]
    where = first.get("loc", ())
    parts = [str(part) for part in where] if isinstance(where, tuple | list) else []
    place, path = (parts[0] if parts else ""), ".".join(parts[1:]) or None
    kind, message = str(first.get("type")), str(first.get("msg")).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return UnknownParameter(f"Unknown parameter: '{path}'.", param=path)
    if kind == "missing":
        return MissingParameter(f"Missing required parameter: '{path}'.", param=path)
    if kind == "json_invalid":
        return InvalidJson("The body is not valid JSON.")
    if place == "query" and path in ("limit", "after"):
        return InvalidCursor(f"{path}: {message}", param=path)
    return InvalidValue(f"{path}: {message}" if path else message, param=path)


def install_error_responses(app: FastAPI) -> None:
    """Replace FastAPI's and Starlette's own answers."""

    @app.exception_handler(AppError)
    def expected(request: Request, error: AppError) -> Response:
        return answer(request, error)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(request, from_validation(list(error.errors())))

    @app.exception_handler(HTTPException)
    def from_starlette(request: Request, error: HTTPException) -> Response:
        families: dict[int, AppError] = {
            404: NotFound(f"No such page: {request.method} {request.url.path}"),
            405: MethodNotAllowed(f"{request.method} is not allowed here."),
        }
        return answer(request, families.get(error.status_code, InvalidJson(str(error.detail))), error.headers or {})

    @app.exception_handler(PoolTimeout)
    @app.exception_handler(OperationalError)
    def database_trouble(request: Request, error: Exception) -> Response:
        log.warning("database_unavailable", error=str(getattr(error, "orig", error)))
        return answer(request, Unavailable("The store cannot reach its database; try again.", retry_after=1))

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> Response:
        """Answered outside the request guard, which therefore cannot add the id."""
        request_id = request.scope.get(REQUEST_ID, "")
        log.error("unexpected_error", request_id=request_id, exc_info=error)
        return answer(request, InternalError("Something went wrong on our side."), {"x-request-id": request_id})


class InternalError(AppError, status=500, code="internal_error", type="server_error"):
    """A defect of the store; the log has the trace under the same request id."""
