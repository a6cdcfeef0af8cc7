"""What browsers post: from this store's own page, under the session's token, each form's effect once."""

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session
from starlette.datastructures import UploadFile
from starlette.responses import RedirectResponse, Response

from app.accounts.csrf import check_csrf
from app.database import transaction
from app.error_responses import from_validation
from app.errors import AppError, CsrfFailed, InvalidValue
from app.files.upload import check_disk
from app.idempotency import once, wait_for_key
from app.settings import get_settings
from app.web.visitors import SignedIn

T = TypeVar("T", bound=BaseModel)
MAX_FIELDS, MAX_FIELD_BYTES = 40, 256 * 1024
# Never shown again, and not part of what a form means.
UNSHOWN = frozenset({"password", "token", "csrf", "idempotency_key"})


class Gone(BaseModel):
    """Where a form's effect led."""

    location: str


@dataclass(frozen=True)
class Posted:
    """The fields of a form as text, blank ones left out, and its files."""

    path: str
    fields: Mapping[str, str]
    files: Mapping[str, UploadFile]

    @property
    def values(self) -> dict[str, str]:
        """What a refused form shows again."""
        return {name: value for name, value in self.fields.items() if name not in UNSHOWN}

    def parse(self, model: type[T]) -> T:
        """The fields that `model` has. Raises what the API answers for bad ones."""
        return checked(model, {name: value for name, value in self.fields.items() if name in model.model_fields})

    def once(self, tx: Session, account_id: str, effect: Callable[[], str]) -> str:
        """`effect` once per form shown, however often it is sent: a double click or a reload is led to the same place.

        The form carries a random key, as API clients send in `Idempotency-Key`.
        """
        key = self.fields.get("idempotency_key", "")
        if not 8 <= len(key) <= 100:
            raise InvalidValue("This form is incomplete; reload the page and send it again.")
        files = [(name, file.filename, file.size) for name, file in self.files.items()]
        wanted = hashlib.sha256(json.dumps([self.path, self.values, files]).encode()).hexdigest()
        wait_for_key(tx, account_id, key)
        answer = once(tx, account_id, key, wanted, 303, lambda: Gone(location=effect()))
        return Gone.model_validate_json(answer.body).location


def checked(model: type[T], values: Mapping[str, object]) -> T:
    """`model` of these values. Raises the API's refusals, naming the field."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        complaints: list[dict[str, object]] = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise from_validation(complaints) from error


def check_origin(request: Request) -> None:
    """Raises CsrfFailed for a form that another site sent. Browsers add these headers, and pages cannot forge them."""
    fetched = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    same_host = origin is not None and urlsplit(origin).netloc == request.headers.get("host")
    if not (fetched in ("same-origin", "none") if fetched else same_host):
        raise CsrfFailed("This form came from another site. Open the page here and send it again.")


async def read(request: Request, max_files: int) -> AsyncIterator[Posted]:
    async with request.form(max_files=max_files, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
        items = form.multi_items()
        fields = {name: value.replace("\r\n", "\n") for name, value in items if isinstance(value, str)}
        if any("\0" in text for item in fields.items() for text in item):
            raise InvalidValue("Text may not contain NUL.")
        files = {name: file for name, file in items if isinstance(file, UploadFile) and file.filename}
        yield Posted(request.url.path, {name: value for name, value in fields.items() if value.strip()}, files)


async def open_form(request: Request) -> AsyncIterator[Posted]:
    """Of somebody without a session: there is no token yet, so where it came from decides."""
    check_origin(request)
    async for posted in read(request, 0):
        yield posted


async def member_form(request: Request, member: SignedIn) -> AsyncIterator[Posted]:
    async for posted in read_of_member(request, member, 0):
        yield posted


async def upload_form(request: Request, member: SignedIn) -> AsyncIterator[Posted]:
    check_disk(int(request.headers.get("content-length", "0")))
    async for posted in read_of_member(request, member, 2):
        yield posted


async def read_of_member(request: Request, member: SignedIn, max_files: int) -> AsyncIterator[Posted]:
    """Who sends is known before a byte of the body is read."""
    check_origin(request)
    async for posted in read(request, max_files):
        check_csrf(get_settings().secret_key, member.token, posted.fields.get("csrf", ""))
        yield posted


OpenForm = Annotated[Posted, Depends(open_form)]
MemberForm = Annotated[Posted, Depends(member_form)]
UploadForm = Annotated[Posted, Depends(upload_form)]


def submit(effect: Callable[[Session], str], again: Callable[[AppError], Response]) -> Response:
    """Do it in one transaction and go where it says; a refusal undoes all of it and shows the form again."""
    try:
        with transaction() as tx:
            location = effect(tx)
    except AppError as refusal:
        return again(refusal)
    return RedirectResponse(location, 303)


def local_path(path: str) -> str:
    """`path` if it stays on this store, else the front page: `next` never leads away."""
    parts = urlsplit(path)
    plain = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if plain and not parts.scheme and not parts.netloc else "/"
