"""A message can be lost with Valkey or with a worker; the row that waits for it cannot. Such rows are sent again.

Every task's body checks its row first, so a message too many changes nothing.
"""

from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.catalog.tables import Listing, ListingVersion
from app.database import utc_now
from app.files.tables import File
from app.fine_tuning.tables import FineTuningJob
from app.tasks import (
    DATASETS_QUEUE,
    FINE_TUNING_QUEUE,
    MODEL_IMPORT_QUEUE,
    TaskName,
    enqueue,
    generation_queue,
)
from app.variants.bases import unfinished_imports

PATIENCE = timedelta(seconds=20)


def resend_lost_tasks(tx: Session) -> int:
    """Wake the workers for everything that has waited longer than PATIENCE; returns how many were sent."""
    return resend_imports(tx) + resend_validations(tx) + resend_checks(tx)


def resend_imports(tx: Session) -> int:
    waiting = [base for base in unfinished_imports(tx) if base.created_at < utc_now() - 3 * PATIENCE]
    for base in waiting:
        enqueue(tx, TaskName.IMPORT_BASE, {"base_id": base.id, "source": base.source}, MODEL_IMPORT_QUEUE)
    return len(waiting)


def resend_validations(tx: Session) -> int:
    query = select(File.id).where(
        File.status.in_(("uploaded", "processing")),
        File.purpose == "fine-tune",
        File.deleted_at.is_(None),
        File.created_at < utc_now() - PATIENCE,
    )
    waiting = list(tx.scalars(query))
    for file_id in waiting:
        enqueue(tx, TaskName.VALIDATE_FILE, {"file_id": file_id}, DATASETS_QUEUE)
    return len(waiting)


def resend_checks(tx: Session) -> int:
    query = select(ListingVersion.id, Listing.base_id).join(Listing, Listing.id == ListingVersion.listing_id)
    query = query.where(ListingVersion.status == "checking", ListingVersion.created_at < utc_now() - PATIENCE)
    waiting = tx.execute(query).all()
    for version_id, base_id in waiting:
        enqueue(tx, TaskName.CHECK_VERSION, {"version_id": version_id}, generation_queue(base_id))
    return len(waiting)


def wake_fine_tuning(tx: Session) -> int:
    """One message is enough: the worker claims whatever waits, expired leases included."""
    waiting = select(FineTuningJob.id).where(
        (FineTuningJob.status.in_(("validating_files", "queued")) & (FineTuningJob.created_at < utc_now() - PATIENCE))
        | ((FineTuningJob.status == "running") & (FineTuningJob.lease_expires_at < utc_now()))
    )
    job_id = tx.scalar(waiting.limit(1))
    if job_id is None:
        return 0
    enqueue(tx, TaskName.FINE_TUNE, {"job_id": job_id}, FINE_TUNING_QUEUE)
    return 1
