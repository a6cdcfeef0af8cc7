"""Jobs, events and checkpoints of one account, newest first."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.database import utc_now
from app.errors import NotFound
from app.fine_tuning.tables import FineTuningCheckpoint, FineTuningEvent, FineTuningJob
from app.variants.tables import Variant


def find_job(tx: Session, account_id: str, job_id: str, *, lock: bool = False) -> FineTuningJob:
    """Raises NotFound; a foreign id and an unknown one read the same."""
    query = select(FineTuningJob).where(FineTuningJob.id == job_id, FineTuningJob.account_id == account_id)
    job = tx.scalar(query.with_for_update() if lock else query)
    if job is None:
        raise NotFound(f"Could not find fine tune: {job_id}", param="fine_tuning_job_id")
    return job


def is_abandoned(job: FineTuningJob) -> bool:
    """A running one that no worker has a lease on any more: an order would be heard by nobody until it is claimed."""
    return job.status == "running" and (job.lease_expires_at is None or job.lease_expires_at < utc_now())


def list_jobs(
    tx: Session, account_id: str, after: str | None, limit: int, metadata: Mapping[str, str]
) -> list[FineTuningJob]:
    """Up to `limit + 1`, those that carry all pairs of `metadata`."""
    query = select(FineTuningJob).where(FineTuningJob.account_id == account_id)
    if metadata:
        query = query.where(FineTuningJob.metadata_.contains(dict(metadata)))
    if after is not None:
        query = query.where(FineTuningJob.id < after)
    return list(tx.scalars(query.order_by(FineTuningJob.id.desc()).limit(limit + 1)))


def list_events(tx: Session, job_id: str, after: str | None, limit: int) -> list[FineTuningEvent]:
    query = select(FineTuningEvent).where(FineTuningEvent.job_id == job_id)
    if after is not None:
        query = query.where(FineTuningEvent.id < after)
    return list(tx.scalars(query.order_by(FineTuningEvent.id.desc()).limit(limit + 1)))


def events_after(tx: Session, job_id: str, after: str | None, limit: int) -> list[FineTuningEvent]:
    """Oldest first, those newer than `after`."""
    query = select(FineTuningEvent).where(FineTuningEvent.job_id == job_id)
    if after is not None:
        query = query.where(FineTuningEvent.id > after)
    return list(tx.scalars(query.order_by(FineTuningEvent.id).limit(limit)))


def read_metrics(tx: Session, job_id: str) -> list[dict[str, Any]]:
    """What each step reported, in order: step, total_steps, train_loss, eta_seconds, perhaps valid_loss."""
    query = select(FineTuningEvent.data).where(FineTuningEvent.job_id == job_id, FineTuningEvent.type == "metrics")
    return list(tx.scalars(query.order_by(FineTuningEvent.id)))


def list_checkpoints(tx: Session, job_id: str, after: str | None, limit: int) -> list[FineTuningCheckpoint]:
    query = select(FineTuningCheckpoint).where(FineTuningCheckpoint.job_id == job_id)
    if after is not None:
        query = query.where(FineTuningCheckpoint.id < after)
    return list(tx.scalars(query.order_by(FineTuningCheckpoint.id.desc()).limit(limit + 1)))


def model_names(tx: Session, variant_ids: Sequence[str | None]) -> dict[str, str]:
    """Variant id → the name it is called by."""
    wanted = [each for each in variant_ids if each is not None]
    if not wanted:
        return {}
    rows = tx.execute(select(Variant.id, Variant.model).where(Variant.id.in_(wanted)))
    return {row[0]: row[1] for row in rows}
