"""What time makes superfluous: expired files, old idempotency keys."""

from datetime import timedelta
from typing import cast

from sqlalchemy import CursorResult, delete
from sqlalchemy.orm import Session

from app.database import utc_now
from app.files.delete import remove_lost_bytes, remove_orphans
from app.tables import metadata
from app.variants.unused import remove_unused_artifacts

IDEMPOTENCY_LIFETIME = timedelta(hours=24)


REMEMBERED_DELETIONS = timedelta(days=2)
ORPHAN_AGE = timedelta(hours=1)


def remove_bytes_left_behind(tx: Session) -> int:
    """Each blob in a transaction of its own; this one only reads nothing."""
    return remove_lost_bytes(REMEMBERED_DELETIONS)


def remove_orphaned_bytes(tx: Session) -> int:
    """Each blob in a transaction of its own, as above."""
    return remove_orphans(ORPHAN_AGE)


def remove_artifacts_of_nobody(tx: Session) -> int:
    """Reads in a transaction of its own, as above."""
    return remove_unused_artifacts(ORPHAN_AGE)


def forget_old_idempotency_keys(tx: Session) -> int:
    records = metadata.tables["idempotency_records"]
    old = delete(records).where(records.c.created_at < utc_now() - IDEMPOTENCY_LIFETIME)
    return cast("CursorResult[object]", tx.execute(old)).rowcount
