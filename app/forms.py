"""Multipart bodies, spooled to disk part by part; a route knows its caller before it reads one."""

from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from app.errors import InsufficientStorage, InvalidValue, MissingParameter, UnknownParameter, UnsupportedMediaType

MAX_TEXT_BYTES = 4096

JsonSchema = dict[str, str]
FILE: JsonSchema = {"type": "string", "format": "binary"}
TEXT: JsonSchema = {"type": "string"}


async def read_form(request: Request, files: frozenset[str], texts: frozenset[str]) -> FormData:
    """At most these fields, each of its kind. The caller closes the form.

    Raises MissingParameter (a body that cannot carry files), UnsupportedMediaType, InvalidValue (broken),
    UnknownParameter, InsufficientStorage (disk full).
    """
    kind = request.headers.get("content-type", "")
    if not kind or kind.startswith("application/x-www-form-urlencoded"):
        missing = sorted(files)
        names = ", ".join(f"'{name}'" for name in missing)
        raise MissingParameter(f"Missing {names}: send files as multipart/form-data.", param=missing[0])
    if not kind.startswith("multipart/form-data"):
        raise UnsupportedMediaType("Send the file as multipart/form-data.")
    try:
        form = await request.form(max_files=len(files), max_fields=len(texts), max_part_size=MAX_TEXT_BYTES)
    except HTTPException as error:
        raise InvalidValue(str(error.detail)) from error
    except OSError as error:
        raise InsufficientStorage("The store's disk is full; try again later.", retry_after=60) from error
    unknown = sorted(set(form) - files - texts)
    if unknown:
        await form.close()
        raise UnknownParameter(f"Unknown parameter: '{unknown[0]}'.", param=unknown[0])
    return form


def file_field(form: FormData, name: str) -> UploadFile:
    """Raises MissingParameter."""
    value = form.get(name)
    if not isinstance(value, UploadFile):
        raise MissingParameter(f"Missing required parameter: '{name}'.", param=name)
    return value


def text_field(form: FormData, name: str) -> str | None:
    """Raises InvalidValue for text that no field may hold."""
    value = form.get(name)
    if not isinstance(value, str):
        return None
    if "\0" in value:
        raise InvalidValue("Text may not contain NUL.", param=name)
    return value


def needed_text(form: FormData, name: str) -> str:
    """Raises MissingParameter, InvalidValue."""
    value = text_field(form, name)
    if value is None:
        raise MissingParameter(f"Missing required parameter: '{name}'.", param=name)
    return value


def multipart_body(needed: dict[str, JsonSchema], optional: dict[str, JsonSchema]) -> dict[str, Any]:
    """What OpenAPI says of a route that reads its form by itself."""
    schema = {"type": "object", "required": list(needed), "properties": needed | optional}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
