"""Who works on what: a worker owns a job while its lease lasts and its fencing token is the row's."""

from datetime import timedelta

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.orm import Session

from app.fine_tuning.finish import cancelled, fail
from app.fine_tuning.rules import WAITING
from app.fine_tuning.tables import FineTuningJob
from app.settings import get_settings
from app.tasks import FINE_TUNING_QUEUE, TaskName, enqueue

MAX_WAKE_UPS = 16


def due() -> ColumnElement[bool]:
    """Waiting, or running under a lease that its worker let lapse."""
    lapsed = and_(FineTuningJob.status == "running", FineTuningJob.lease_expires_at < func.now())
    return or_(FineTuningJob.status.in_(WAITING), lapsed)


def claim_next(tx: Session, lease_seconds: float) -> FineTuningJob | None:
    """The oldest due job, now ours; jobs cancelled meanwhile or tried too often are ended on the way."""
    while job := take(tx, lease_seconds):
        if job.cancel_requested:
            cancelled(tx, job.id, job.fencing_token)
        elif job.attempts > get_settings().fine_tuning.max_attempts:
            fail(tx, job.id, job.fencing_token, "training_failed", "The training process ended again and again.")
        else:
            return job
    return None


def take(tx: Session, lease_seconds: float) -> FineTuningJob | None:
    oldest = select(FineTuningJob.id).where(due()).order_by(FineTuningJob.created_at).limit(1)
    statement = (
        update(FineTuningJob)
        .where(FineTuningJob.id == oldest.with_for_update(skip_locked=True).scalar_subquery())
        .values(
            status="running",
            fencing_token=FineTuningJob.fencing_token + 1,
            attempts=FineTuningJob.attempts + 1,
            lease_expires_at=func.now() + timedelta(seconds=lease_seconds),
            started_at=func.coalesce(FineTuningJob.started_at, func.now()),
        )
        .returning(FineTuningJob)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return tx.scalar(statement)


def wake_workers(tx: Session) -> int:
    """Send a wake-up for every due job; harmless when one was sent already. For upkeep: messages may be lost."""
    count = min(int(tx.scalar(select(func.count()).select_from(FineTuningJob).where(due())) or 0), MAX_WAKE_UPS)
    for _ in range(count):
        wake_worker(tx)
    return count


def wake_worker(tx: Session) -> None:
    enqueue(tx, TaskName.FINE_TUNE, {}, FINE_TUNING_QUEUE)
