"""The multipart body of POST /v1/files, read part by part to disk."""

from dataclasses import dataclass
from typing import IO

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from app.errors import InsufficientStorage, InvalidValue, MissingParameter, RequestTooLarge, UnknownParameter
from app.files.rules import check_filename, check_lifetime, check_purpose
from app.settings import get_settings

FIELDS = frozenset({"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"})

OPENAPI_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string"},
                        "expires_after[anchor]": {"type": "string"},
                        "expires_after[seconds]": {"type": "integer"},
                    },
                }
            }
        },
    }
}


@dataclass(frozen=True)
class UploadForm:
    """A checked form. `stream` stands at its beginning; `lifetime` in seconds."""

    stream: IO[bytes]
    filename: str
    purpose: str
    lifetime: int | None


async def read_form(request: Request) -> FormData:
    """Spool the body to disk. Raises InvalidValue for a broken one, InsufficientStorage when the disk is full."""
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise InvalidValue("Send the file as multipart/form-data.")
    try:
        return await request.form(max_files=1, max_fields=len(FIELDS), max_part_size=4096)
    except HTTPException as error:
        raise InvalidValue(str(error.detail)) from error
    except OSError as error:
        raise InsufficientStorage("The store's disk is full; try again later.", retry_after=60) from error


def check_form(form: FormData) -> UploadForm:
    """Raises UnknownParameter, MissingParameter, InvalidFilename, InvalidValue, RequestTooLarge."""
    for name in form:
        if name not in FIELDS:
            raise UnknownParameter(f"Unknown parameter: '{name}'.", param=name)
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise MissingParameter("Missing required parameter: 'file'.", param="file")
    purpose = text_field(form, "purpose")
    if purpose is None:
        raise MissingParameter("Missing required parameter: 'purpose'.", param="purpose")
    limit = get_settings().api.max_upload_bytes
    if (upload.size or 0) > limit:
        raise RequestTooLarge(f"A file may have at most {limit} bytes.", param="file")
    return UploadForm(
        stream=upload.file,
        filename=check_filename(upload.filename or ""),
        purpose=check_purpose(purpose),
        lifetime=check_lifetime(text_field(form, "expires_after[anchor]"), text_field(form, "expires_after[seconds]")),
    )


def text_field(form: FormData, name: str) -> str | None:
    value = form.get(name)
    return value if isinstance(value, str) else None
