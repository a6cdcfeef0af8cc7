"""What a worker may write about the job it owns; every write first proves that it still owns it."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.database import utc_now
from app.fine_tuning.events import Event, add_events
from app.fine_tuning.tables import FineTuningCheckpoint, FineTuningJob
from app.fine_tuning.wake import wake_worker
from app.variants.tables import Variant

# In a job's `result` while it is open: its owner was told that it started.
STARTED = "started"
Lease = Literal["held", "cancel_requested", "pause_requested", "lost"]


class LostLease(Exception):
    """Another worker, or the job's end, has overtaken this one: it must stop without a trace."""


def owned_job(tx: Session, job_id: str, token: int) -> FineTuningJob:
    """The row, locked until the transaction ends. Raises LostLease."""
    query = select(FineTuningJob).where(
        FineTuningJob.id == job_id, FineTuningJob.status == "running", FineTuningJob.fencing_token == token
    )
    job = tx.scalar(query.with_for_update().execution_options(populate_existing=True))
    if job is None:
        raise LostLease(job_id)
    return job


def renew(tx: Session, job_id: str, token: int, seconds: float) -> Lease:
    """Lengthen the lease to `seconds` from now; says what the owner has asked for meanwhile."""
    query = update(FineTuningJob).where(
        FineTuningJob.id == job_id, FineTuningJob.status == "running", FineTuningJob.fencing_token == token
    )
    values = query.values(lease_expires_at=func.now() + timedelta(seconds=seconds))
    row = tx.execute(values.returning(FineTuningJob.cancel_requested, FineTuningJob.pause_requested)).one_or_none()
    if row is None:
        return "lost"
    if row.cancel_requested:
        return "cancel_requested"
    return "pause_requested" if row.pause_requested else "held"


def release(
    tx: Session,
    job_id: str,
    token: int,
    *,
    count_attempt: bool,
    events: Sequence[Event] = (),
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Give the job back, to be claimed at once by whoever wakes first; `notes` are for that one. Raises LostLease."""
    job = owned_job(tx, job_id, token)
    job.lease_expires_at = utc_now() - timedelta(seconds=1)
    if not count_attempt:
        job.attempts = max(0, job.attempts - 1)
    job.result = {**job.result, **(notes or {})}
    add_events(tx, job_id, events)
    wake_worker(tx)


def begin(tx: Session, job_id: str, token: int, resolved: Mapping[str, Any], explained: str | None = None) -> None:
    """Show the hyperparameters that `auto` became; the first time say so and why. Raises LostLease."""
    job = owned_job(tx, job_id, token)
    job.hyperparameters = dict(resolved)
    if STARTED not in job.result:
        messages = ["Fine-tuning job started", *([explained] if explained else [])]
        add_events(tx, job_id, [Event(message) for message in messages])
        job.result = {**job.result, STARTED: True}


def report(tx: Session, job_id: str, token: int, events: Sequence[Event], eta_seconds: float | None) -> None:
    """Metrics of some steps and when the job should be done. Raises LostLease."""
    job = owned_job(tx, job_id, token)
    if eta_seconds is not None:
        job.estimated_finish = utc_now() + timedelta(seconds=eta_seconds)
    add_events(tx, job_id, events)


def advanced(tx: Session, job_id: str, token: int) -> None:
    """A checkpoint is on disk: only attempts without any progress count towards giving up. Raises LostLease."""
    owned_job(tx, job_id, token).attempts = 0


def add_checkpoint(
    tx: Session, job_id: str, token: int, step: int, variant: Variant, metrics: Mapping[str, Any]
) -> None:
    """Record a callable state once per step. Raises LostLease."""
    owned_job(tx, job_id, token)
    same = select(FineTuningCheckpoint.id).where(
        FineTuningCheckpoint.job_id == job_id, FineTuningCheckpoint.step == step
    )
    if tx.scalar(same) is None:
        tx.add(FineTuningCheckpoint(job_id=job_id, step=step, variant_id=variant.id, metrics=dict(metrics)))
        tx.flush()


def has_checkpoint(tx: Session, job_id: str, step: int) -> bool:
    query = select(FineTuningCheckpoint.id).where(FineTuningCheckpoint.job_id == job_id)
    return tx.scalar(query.where(FineTuningCheckpoint.step == step)) is not None
