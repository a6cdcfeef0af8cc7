"""Letting files go: rows at once, bytes once no row needs them."""

from datetime import timedelta

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.database import transaction, utc_now
from app.errors import InUse
from app.files.find import find_file
from app.files.tables import File
from app.files.upload import lock_blob, uploads

BATCH = 1000
# By table name: files lie below fine-tuning in the layers.
USED = text(
    "SELECT 1 FROM fine_tuning_jobs WHERE (training_file_id = :file OR validation_file_id = :file) "
    "AND status IN ('validating_files', 'queued', 'running', 'paused') LIMIT 1"
)


def delete_file(tx: Session, account_id: str, file_id: str) -> File:
    """Raises NotFound, InUse while a job needs it. Call `remove_bytes` once this has committed."""
    file = find_file(tx, account_id, file_id)
    tx.refresh(file, with_for_update=True)
    if tx.execute(USED, {"file": file.id}).first():
        raise InUse("A fine-tuning job still needs this file.", param="file_id")
    file.deleted_at = utc_now()
    return file


def remove_bytes(digest: str) -> bool:
    """Delete a blob that no file has any more; True when it went."""
    with transaction() as tx:
        lock_blob(tx, digest)
        if tx.scalar(select(File.id).where(File.digest == digest, File.deleted_at.is_(None)).limit(1)):
            return False
        uploads().delete(digest)
        return True


def remove_orphans(age: timedelta) -> int:
    """Delete blobs of at least this age that no file has: whoever wrote them died before its row was committed, or
    after it had replaced them.
    """
    digests = list(uploads().older_than(age.total_seconds()))
    removed = 0
    for begin in range(0, len(digests), BATCH):
        batch = digests[begin : begin + BATCH]
        with transaction() as tx:
            needed = set(tx.scalars(select(File.digest).where(File.digest.in_(batch), File.deleted_at.is_(None))))
        removed += sum(remove_bytes(digest) for digest in batch if digest not in needed)
    return removed


def expire_files(tx: Session) -> int:
    """Mark files past their time as deleted, unless a job needs them; returns how many."""
    query = select(File).where(File.expires_at <= utc_now(), File.deleted_at.is_(None)).limit(500)
    due = [
        file
        for file in tx.scalars(query.with_for_update(skip_locked=True))
        if not tx.execute(USED, {"file": file.id}).first()
    ]
    for file in due:
        file.deleted_at = utc_now()
    return len(due)


def remove_lost_bytes(since: timedelta) -> int:
    """Blobs of files that were deleted within `since` and are still there, say because the API was killed."""
    with transaction() as tx:
        query = select(File.digest).where(File.deleted_at > utc_now() - since).distinct()
        digests = [digest for digest in tx.scalars(query) if uploads().has(digest)]
    return sum(remove_bytes(digest) for digest in digests)
