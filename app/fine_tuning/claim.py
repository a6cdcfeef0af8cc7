"""Who works on what: a worker owns a job while its lease lasts and its fencing token is the row's.

Turns go round the tenants (docs/decisions/0018-jobs-queue.md); claims wait for each other, so that limits hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, update
from sqlalchemy.orm import Session

from app.fine_tuning.events import Event, add_events
from app.fine_tuning.finish import cancelled, fail
from app.fine_tuning.pause import rest
from app.fine_tuning.rules import WAITING
from app.fine_tuning.tables import FineTuningEvent, FineTuningJob
from app.fine_tuning.wake import wake_worker
from app.settings import get_settings

MAX_WAKE_UPS = 16
CANDIDATES = 16
CLAIMING = "fine-tuning claims"
TOO_LARGE = "waits_for_memory"


@dataclass(frozen=True)
class Slot:
    """What a worker offers: `lease` seconds at a time, `memory_bytes` of its device that no other job of it has."""

    lease: float
    memory_bytes: int


def due() -> ColumnElement[bool]:
    """Waiting, or running under a lease that its worker let lapse."""
    lapsed = and_(FineTuningJob.status == "running", FineTuningJob.lease_expires_at < func.now())
    return or_(FineTuningJob.status.in_(WAITING), lapsed)


def claim_next(tx: Session, slot: Slot) -> FineTuningJob | None:
    """The next due job that fits, now ours. Jobs to be cancelled, paused or given up are put aside on the way."""
    tx.execute(select(func.pg_advisory_xact_lock(func.hashtext(CLAIMING))))
    while job := take(tx, slot):
        if job.cancel_requested:
            cancelled(tx, job.id, job.fencing_token)
        elif job.pause_requested:
            rest(tx, job)
        elif job.attempts > get_settings().fine_tuning.max_attempts:
            last = job.result.get("last_end")
            text = f"The training process ended again and again{f', the last time: {last}' if last else ''}."
            fail(tx, job.id, job.fencing_token, "training_failed", text)
        else:
            return job
    return None


def take(tx: Session, slot: Slot) -> FineTuningJob | None:
    for job_id in candidates(tx, slot.memory_bytes):
        free = select(FineTuningJob.id).where(FineTuningJob.id == job_id, due()).with_for_update(skip_locked=True)
        statement = (
            update(FineTuningJob)
            .where(FineTuningJob.id == free.scalar_subquery())
            .values(
                status="running",
                fencing_token=FineTuningJob.fencing_token + 1,
                attempts=FineTuningJob.attempts + 1,
                lease_expires_at=func.now() + timedelta(seconds=slot.lease),
                started_at=func.coalesce(FineTuningJob.started_at, func.now()),
            )
            .returning(FineTuningJob)
            .execution_options(synchronize_session=False, populate_existing=True)
        )
        if (job := tx.scalar(statement)) is not None:
            return job
    return None


def candidates(tx: Session, memory_bytes: int) -> Sequence[str]:
    """First the tenant with fewest jobs running, then the one served longest ago; within a tenant by priority."""
    owners = tenants().cte("tenants")
    mine = func.min(FineTuningJob.created_at).over(partition_by=FineTuningJob.account_id)
    query = select(FineTuningJob.id).join(owners, owners.c.account_id == FineTuningJob.account_id)
    query = query.where(
        due(),
        FineTuningJob.memory_bytes <= memory_bytes,
        owners.c.running < get_settings().fine_tuning.max_running_per_account,
    )
    query = query.order_by(
        owners.c.running,
        owners.c.served.asc().nulls_first(),
        mine,
        FineTuningJob.priority.desc(),
        FineTuningJob.created_at,
    )
    return tx.scalars(query.limit(CANDIDATES)).all()


def tenants() -> Select[str, int, object]:
    """Of each account that has a due job: how many of its jobs run, and when one last began."""
    running = and_(FineTuningJob.status == "running", FineTuningJob.lease_expires_at >= func.now())
    waiting = select(FineTuningJob.account_id).where(due())
    return (
        select(
            FineTuningJob.account_id,
            func.count().filter(running).label("running"),
            func.max(FineTuningJob.started_at).label("served"),
        )
        .where(FineTuningJob.account_id.in_(waiting))
        .group_by(FineTuningJob.account_id)
    )


def tell_what_does_not_fit(tx: Session, memory_bytes: int) -> None:
    """Owners of waiting jobs that this worker can never hold hear once why theirs waits."""
    told = select(FineTuningEvent.job_id).where(FineTuningEvent.data["reason"].as_string() == TOO_LARGE)
    query = select(FineTuningJob).where(due(), FineTuningJob.memory_bytes > memory_bytes)
    query = query.where(FineTuningJob.id.not_in(told)).limit(CANDIDATES).with_for_update(skip_locked=True)
    for job in tx.scalars(query):
        need, has = job.memory_bytes / 1e9, memory_bytes / 1e9
        message = f"The job needs about {need:.1f} GB of memory and waits for a worker that has it; one had {has:.1f}."
        add_events(tx, job.id, [Event(message, level="warn", data={"reason": TOO_LARGE})])


def wake_workers(tx: Session) -> int:
    """Send a wake-up for every due job; harmless when one was sent already. For upkeep: messages may be lost."""
    count = min(int(tx.scalar(select(func.count()).select_from(FineTuningJob).where(due())) or 0), MAX_WAKE_UPS)
    for _ in range(count):
        wake_worker(tx)
    return count
