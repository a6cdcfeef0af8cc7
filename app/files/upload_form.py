"""The multipart body of POST /v1/files."""

from dataclasses import dataclass
from typing import IO

from starlette.datastructures import FormData

from app.errors import RequestTooLarge
from app.files.rules import check_filename, check_lifetime, check_purpose
from app.forms import FILE, TEXT, file_field, multipart_body, needed_text, text_field
from app.settings import get_settings

FILES = frozenset({"file"})
TEXTS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})

OPENAPI_BODY = multipart_body(
    needed={"file": FILE, "purpose": TEXT},
    optional={"expires_after[anchor]": TEXT, "expires_after[seconds]": {"type": "integer"}},
)


@dataclass(frozen=True)
class UploadForm:
    """A checked form. `stream` stands at its beginning; `lifetime` in seconds."""

    stream: IO[bytes]
    filename: str
    purpose: str
    lifetime: int | None


def check_form(form: FormData) -> UploadForm:
    """Raises MissingParameter, InvalidFilename, InvalidValue, RequestTooLarge."""
    upload = file_field(form, "file")
    purpose = needed_text(form, "purpose")
    limit = get_settings().api.max_upload_bytes
    if (upload.size or 0) > limit:
        raise RequestTooLarge(f"A file may have at most {limit} bytes.", param="file")
    return UploadForm(
        stream=upload.file,
        filename=check_filename(upload.filename or ""),
        purpose=check_purpose(purpose),
        lifetime=check_lifetime(text_field(form, "expires_after[anchor]"), text_field(form, "expires_after[seconds]")),
    )
