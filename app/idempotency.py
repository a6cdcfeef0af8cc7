"""`Idempotency-Key`: one effect per key, however often and however simultaneously the request is sent.

The answer of a success is stored in the effect's own transaction and replayed byte for byte for 24 hours. Refusals
are not stored: the next try is evaluated again.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from fastapi import Request
from pydantic import BaseModel
from sqlalchemy import ForeignKey, LargeBinary, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column
from starlette.responses import Response

from app.accounts.authenticate import Caller
from app.database import Base, utc_now
from app.errors import IdempotencyInProgress, IdempotencyKeyReused, InvalidValue

HEADER = "idempotency-key"
MAX_KEY_LENGTH = 255
LIFETIME = timedelta(hours=24)


class IdempotencyRecord(Base):
    """The 2xx answer of a request, stored in its effect's own transaction."""

    __tablename__ = "idempotency_records"
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[str]
    status: Mapped[int]
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


def idempotent(
    tx: Session, request: Request, caller: Caller, body: BaseModel, status: int, effect: Callable[[], BaseModel]
) -> Response:
    """Run `effect` once per (account, key) and answer `status` with its result, or replay the first answer.

    Without the header the effect simply runs. Raises IdempotencyInProgress (409), IdempotencyKeyReused (422).
    """
    key = request.headers.get(HEADER)
    if key is None:
        return json_response(effect().model_dump_json().encode(), status)
    if not 0 < len(key) <= MAX_KEY_LENGTH:
        raise InvalidValue(f"Idempotency-Key has 1 to {MAX_KEY_LENGTH} characters.", param="Idempotency-Key")
    if not tx.scalar(select(func.pg_try_advisory_xact_lock(lock_number(caller.account_id, key)))):
        raise IdempotencyInProgress("A request with this Idempotency-Key is under way.", retry_after=1)
    answer = once(tx, caller.account_id, key, request_hash(request, body), status, effect)
    return json_response(answer.body, answer.status, {"idempotency-replayed": "true"} if answer.replayed else None)


@dataclass(frozen=True)
class Answer:
    """What the first request of a key was answered, or would have been."""

    status: int
    body: bytes
    replayed: bool


def once(tx: Session, account_id: str, key: str, wanted: str, status: int, effect: Callable[[], BaseModel]) -> Answer:
    """`effect`, or the answer it gave before. Call it with the key's lock held. Raises IdempotencyKeyReused (422)."""
    record = tx.get(IdempotencyRecord, (account_id, key))
    if record is not None and record.created_at > utc_now() - LIFETIME:
        if record.request_hash != wanted:
            raise IdempotencyKeyReused("This Idempotency-Key was used with another request.")
        return Answer(record.status, record.body, replayed=True)
    if record is not None:
        tx.delete(record)
        tx.flush()
    answer = effect().model_dump_json().encode()
    tx.add(IdempotencyRecord(account_id=account_id, key=key, request_hash=wanted, status=status, body=answer))
    return Answer(status, answer, replayed=False)


def wait_for_key(tx: Session, account_id: str, key: str) -> None:
    """Take the key's lock, after whoever has it: a browser shows the answer to the second click of a double click."""
    tx.execute(select(func.pg_advisory_xact_lock(lock_number(account_id, key))))


def lock_number(account_id: str, key: str) -> int:
    """The advisory lock of an account's key: a signed 64-bit number."""
    digest = hashlib.sha256(f"{account_id} {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def request_hash(request: Request, body: BaseModel) -> str:
    """Method, path and meaning of the body: the order of members and blanks between them do not matter."""
    parts = f"{request.method} {request.url.path} {body.model_dump_json()}"
    return hashlib.sha256(parts.encode()).hexdigest()


def json_response(body: bytes, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, "application/json")
