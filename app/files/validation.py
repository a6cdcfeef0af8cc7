"""The outcome of a validation, as the worker records it."""

from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.database import utc_now
from app.files.tables import DatasetReport, File
from app.tasks import DATASETS_QUEUE, TaskName, enqueue

DUE = ("uploaded", "processing")


def begin_validation(tx: Session, file_id: str) -> File | None:
    """The file, now `processing`; None when it is gone or done. Two at once do no harm."""
    file = tx.get(File, file_id)
    if file is None or file.deleted_at is not None or file.status not in DUE:
        return None
    file.status = "processing"
    return file


def finish_validation(tx: Session, file_id: str, report: dict[str, Any], trouble: str | None) -> None:
    """Store the report; `trouble` says why the file cannot be trained on, None when it can."""
    row = {"report": report, "created_at": utc_now()}
    statement = insert(DatasetReport).values(file_id=file_id, **row)
    tx.execute(statement.on_conflict_do_update(index_elements=[DatasetReport.file_id], set_=row))
    status = {"status": "error" if trouble else "processed", "status_details": trouble}
    tx.execute(update(File).where(File.id == file_id).values(**status))


def resend_validations(tx: Session, older_than: datetime) -> int:
    """Send again the validations that were due before `older_than` and are not done."""
    query = select(File.id).where(File.status.in_(DUE), File.deleted_at.is_(None), File.created_at < older_than)
    ids = list(tx.scalars(query.limit(500)))
    for file_id in ids:
        enqueue(tx, TaskName.VALIDATE_FILE, {"file_id": file_id}, DATASETS_QUEUE)
    return len(ids)
