"""Every way a job ends: one conditional UPDATE, and its hold settled or released in the same transaction, once."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.billing.holds import release_hold, settle_hold
from app.billing.ledger import REVENUE
from app.database import utc_now
from app.errors import JobNotCancellable
from app.fine_tuning.events import Event, add_events
from app.fine_tuning.find import find_job, is_abandoned
from app.fine_tuning.rules import OPEN, UNCLAIMED, training_price
from app.fine_tuning.tables import FineTuningJob
from app.variants.tables import BaseModel, Variant

KIND = "fine_tuning"


def succeed(
    tx: Session, job_id: str, token: int, variant: Variant, trained_tokens: int, result: Mapping[str, Any]
) -> bool:
    """Charge what was trained, never more than was held. False when this worker no longer owns the job."""
    job = tx.get_one(FineTuningJob, job_id)
    price = tx.get_one(BaseModel, job.base_id).training_micros_per_million_tokens
    charge = min(job.held_micros, training_price(trained_tokens, price))
    columns = {"variant_id": variant.id, "trained_tokens": trained_tokens, "result": dict(result)}
    if not end(tx, job_id, "succeeded", token=token, charge=charge, **columns):
        return False
    messages = [f"New fine-tuned model created: {variant.model}", "The job has successfully completed"]
    add_events(tx, job_id, [Event(message) for message in messages])
    return True


def fail(tx: Session, job_id: str, token: int, code: str, message: str, param: str | None = None) -> bool:
    """The job's error as OpenAI gives it; nothing is charged."""
    error = {"code": code, "message": message, "param": param}
    if not end(tx, job_id, "failed", token=token, error=error):
        return False
    add_events(tx, job_id, [Event(f"The job failed: {message}", level="error")])
    return True


def cancelled(tx: Session, job_id: str, token: int | None) -> bool:
    """`token` None: no worker had the job. Nothing is charged."""
    if not end(tx, job_id, "cancelled", token=token):
        return False
    add_events(tx, job_id, [Event("Fine-tuning job cancelled")])
    return True


def cancel(tx: Session, account_id: str, job_id: str) -> FineTuningJob:
    """A waiting or paused job ends at once, and so does one whose worker is gone; a running one within seconds.
    Raises NotFound, JobNotCancellable.
    """
    job = find_job(tx, account_id, job_id, lock=True)
    if job.status in UNCLAIMED or is_abandoned(job):
        cancelled(tx, job_id, job.fencing_token if job.status == "running" else None)
        tx.refresh(job)
    elif job.status in OPEN:
        job.cancel_requested = True
    else:
        raise JobNotCancellable(f"Job {job_id} has already {job.status}.")
    return job


def end(tx: Session, job_id: str, status: str, *, token: int | None, charge: int = 0, **columns: Any) -> bool:
    """The only statement that closes a job, so that its hold ends exactly once."""
    query = update(FineTuningJob).where(FineTuningJob.id == job_id)
    if token is None:
        query = query.where(FineTuningJob.status.in_(UNCLAIMED))
    else:
        query = query.where(FineTuningJob.status == "running", FineTuningJob.fencing_token == token)
    values = {"finished_at": utc_now(), "lease_expires_at": None, "estimated_finish": None, "charge_micros": charge}
    query = query.values(status=status, **values, **columns)
    row = tx.execute(query.returning(FineTuningJob.account_id, FineTuningJob.held_micros)).one_or_none()
    if row is None:
        return False
    if charge:
        settle_hold(tx, row.account_id, row.held_micros, KIND, job_id, {REVENUE: charge})
    else:
        release_hold(tx, row.account_id, row.held_micros, KIND, job_id)
    return True
