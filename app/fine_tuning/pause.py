"""A job put aside with its place and its hold kept, and taken up again."""

from sqlalchemy.orm import Session

from app.errors import JobNotPausable, JobNotResumable
from app.fine_tuning.events import Event, add_events
from app.fine_tuning.find import find_job, is_abandoned
from app.fine_tuning.rules import OPEN, WAITING
from app.fine_tuning.tables import FineTuningJob
from app.fine_tuning.wake import wake_worker


def pause(tx: Session, account_id: str, job_id: str) -> FineTuningJob:
    """A waiting job rests at once, and so does one whose worker is gone; a running one within seconds. Raises NotFound,
    JobNotPausable once it has ended.
    """
    job = find_job(tx, account_id, job_id, lock=True)
    if job.status in WAITING or is_abandoned(job):
        rest(tx, job)
    elif job.status == "running":
        job.pause_requested = True
    elif job.status != "paused":
        raise JobNotPausable(f"Job {job_id} has already {job.status}.")
    return job


def resume(tx: Session, account_id: str, job_id: str) -> FineTuningJob:
    """To the queue again; a pause not yet obeyed is withdrawn. Raises NotFound, JobNotResumable once it has ended."""
    job = find_job(tx, account_id, job_id, lock=True)
    if job.status not in OPEN:
        raise JobNotResumable(f"Job {job_id} has already {job.status}.")
    job.pause_requested = False
    if job.status == "paused":
        job.status = "queued"
        add_events(tx, job_id, [Event("Fine-tuning job resumed")])
        wake_worker(tx)
    return job


def rest(tx: Session, job: FineTuningJob, reason: str | None = None) -> None:
    """Set a job aside whose row the caller has locked. `reason`: why, when its owner has not asked for it."""
    job.status, job.pause_requested = "paused", False
    job.lease_expires_at, job.estimated_finish, job.attempts = None, None, 0
    message = f"The job was paused: {reason}" if reason else "Fine-tuning job paused"
    add_events(tx, job.id, [Event(message, level="error" if reason else "info")])
