"""The outcome of a validation, as the worker records it."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.database import utc_now
from app.files.tables import DatasetReport, File
from app.tasks import DATASETS_QUEUE, TaskName, enqueue

DUE = ("uploaded", "processing")
LEASE = timedelta(seconds=30)


def begin_validation(tx: Session, file_id: str) -> File | None:
    """The file, now `processing` and leased; None when it is gone, done, or another worker's."""
    file = tx.get(File, file_id, with_for_update=True)
    if file is None or file.deleted_at is not None or file.status not in DUE:
        return None
    if file.lease_until and file.lease_until > utc_now():
        return None
    file.status, file.lease_until = "processing", utc_now() + LEASE
    return file


def renew_validation(tx: Session, file_id: str) -> None:
    tx.execute(
        update(File).where(File.id == file_id, File.lease_until.is_not(None)).values(lease_until=utc_now() + LEASE)
    )


def end_lease(tx: Session, file_id: str) -> None:
    tx.execute(update(File).where(File.id == file_id).values(lease_until=None))


def finish_validation(tx: Session, read: File, report: dict[str, Any], trouble: str | None) -> bool:
    """Store the report; `trouble` says why the file cannot be trained on, None when it can. False, and nothing is
    written, when the file has other content by now than what was `read`.
    """
    same = select(File.id).where(File.id == read.id, File.digest == read.digest).with_for_update()
    file_id = tx.scalar(same)
    if file_id is None:
        return False
    row = {"report": report, "created_at": utc_now()}
    statement = insert(DatasetReport).values(file_id=file_id, **row)
    tx.execute(statement.on_conflict_do_update(index_elements=[DatasetReport.file_id], set_=row))
    status = {"status": "error" if trouble else "processed", "status_details": trouble, "lease_until": None}
    tx.execute(update(File).where(File.id == file_id).values(**status))
    return True


def resend_validations(tx: Session, older_than: datetime) -> int:
    """Send again the validations that were due before `older_than` and that no worker does."""
    free = or_(File.lease_until.is_(None), File.lease_until < utc_now())
    due = (File.status.in_(DUE), File.deleted_at.is_(None), File.created_at < older_than, free)
    ids = list(tx.scalars(select(File.id).where(*due).limit(500)))
    for file_id in ids:
        enqueue(tx, TaskName.VALIDATE_FILE, {"file_id": file_id}, DATASETS_QUEUE)
    return len(ids)
