"""Taking a file in: every check first, then the bytes, then the row; a refusal leaves nothing behind."""

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache
from typing import IO

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.accounts.tables import Account
from app.database import utc_now
from app.errors import InsufficientStorage, NotFound, RequestTooLarge
from app.files.find import used_bytes
from app.files.rules import FINE_TUNE, RESULTS
from app.files.tables import File
from app.settings import get_settings
from app.tasks import DATASETS_QUEUE, TaskName, enqueue
from models_registry.errors import StorageFull
from models_registry.store import ArtifactStore, Blob, open_store

CHUNK = 1024 * 1024


@lru_cache
def uploads() -> ArtifactStore:
    """Apart from models' artifacts: whoever uploads the bytes of a base and deletes them harms nobody."""
    settings = get_settings()
    return open_store(settings.artifacts_url.rstrip("/") + "/uploads", settings.api.min_free_disk_bytes)


def check_disk(incoming: int) -> None:
    """Raises InsufficientStorage when `incoming` more bytes would leave the disk nearly full."""
    if uploads().free_bytes() - incoming < get_settings().api.min_free_disk_bytes:
        raise InsufficientStorage("The store's disk is nearly full; try again later.", retry_after=60)


def save_file(
    tx: Session, account_id: str, stream: IO[bytes], filename: str, purpose: str, lifetime: int | None = None
) -> File:
    """Store the bytes and their row; a training file is sent to be validated, the results of one count in no quota.

    `lifetime` in seconds. Raises RequestTooLarge past the account's quota, InsufficientStorage.
    """
    digest, size = measure(stream)
    if purpose != RESULTS:
        check_quota(tx, account_id, size)
    check_disk(size)
    lock_blob(tx, digest)
    blob = put(stream)
    file = File(
        account_id=account_id,
        filename=filename,
        purpose=purpose,
        bytes=blob.bytes,
        digest=blob.digest,
        status="uploaded" if purpose == FINE_TUNE else "processed",
        expires_at=utc_now() + timedelta(seconds=lifetime) if lifetime else None,
    )
    tx.add(file)
    tx.flush()
    if purpose == FINE_TUNE:
        enqueue(tx, TaskName.VALIDATE_FILE, {"file_id": file.id}, DATASETS_QUEUE)
    return file


def replace_bytes(tx: Session, file: File, stream: IO[bytes], filename: str) -> File:
    """Give a file other content, unless it was deleted or changed since `file` was read; the old bytes stay.

    Raises RequestTooLarge past the account's quota, InsufficientStorage, NotFound.
    """
    digest, size = measure(stream)
    check_quota(tx, file.account_id, size - file.bytes)
    lock_blob(tx, digest)
    row = tx.get(File, file.id, with_for_update=True)
    if row is None or row.deleted_at is not None or row.digest != file.digest:
        raise NotFound(f"No such file: {file.id}")
    blob = put(stream)
    row.digest, row.bytes, row.filename = blob.digest, blob.bytes, filename
    return row


def put(stream: IO[bytes]) -> Blob:
    try:
        return uploads().put(chunks(stream))
    except StorageFull as error:
        raise InsufficientStorage("The store's disk is full; try again later.", retry_after=60) from error


def measure(stream: IO[bytes]) -> tuple[str, int]:
    """The sha256 and the size of what the stream holds, from its beginning."""
    sha, size = hashlib.sha256(), 0
    for chunk in chunks(stream):
        sha.update(chunk)
        size += len(chunk)
    return sha.hexdigest(), size


def chunks(stream: IO[bytes]) -> Iterator[bytes]:
    stream.seek(0)
    while chunk := stream.read(CHUNK):
        yield chunk


def check_quota(tx: Session, account_id: str, incoming: int) -> None:
    """Uploads of one account wait for each other here, so that together they stay within the quota."""
    tx.execute(select(Account.id).where(Account.id == account_id).with_for_update(key_share=True))
    quota = get_settings().api.account_quota_bytes
    if used_bytes(tx, account_id) + incoming > quota:
        raise RequestTooLarge(f"Your files would exceed your storage quota of {quota} bytes; delete some.")


def lock_blob(tx: Session, digest: str) -> None:
    """Until the transaction ends nobody else adds or removes these bytes."""
    tx.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:digest, 7))"), {"digest": digest})
