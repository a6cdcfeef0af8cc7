"""What time makes superfluous: expired files, old idempotency keys."""

from datetime import timedelta
from typing import cast

from sqlalchemy import CursorResult, delete, update
from sqlalchemy.orm import Session

from app.database import utc_now
from app.files.tables import File
from app.tables import metadata

IDEMPOTENCY_LIFETIME = timedelta(hours=24)


def expire_files(tx: Session) -> int:
    """Files whose `expires_after` has come are gone for their owner."""
    due = update(File).where(File.expires_at <= utc_now(), File.deleted_at.is_(None)).values(deleted_at=utc_now())
    return cast("CursorResult[object]", tx.execute(due)).rowcount


def forget_old_idempotency_keys(tx: Session) -> int:
    records = metadata.tables["idempotency_records"]
    old = delete(records).where(records.c.created_at < utc_now() - IDEMPOTENCY_LIFETIME)
    return cast("CursorResult[object]", tx.execute(old)).rowcount
