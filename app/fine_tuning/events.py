"""What a job tells its owner, in order: ids sort by time, also within one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.fine_tuning.tables import FineTuningEvent
from app.ids import new_id

# Postgres notifies here, with the job's id, once events are committed.
CHANNEL = "fine_tuning_events"


@dataclass(frozen=True)
class Event:
    """`type`: message | metrics; `level`: info | warn | error."""

    message: str
    level: str = "info"
    type: str = "message"
    data: dict[str, Any] = field(default_factory=dict)


def add_events(tx: Session, job_id: str, events: Sequence[Event]) -> None:
    """The caller has the job's row locked, so that events are committed in the order of their ids."""
    if not events:
        return
    ids = sorted(new_id("ftevent") for _ in events)
    tx.add_all(
        FineTuningEvent(
            id=id, job_id=job_id, message=event.message, level=event.level, type=event.type, data=event.data
        )
        for id, event in zip(ids, events, strict=True)
    )
    tx.flush()
    tx.execute(select(func.pg_notify(CHANNEL, job_id)))


def told_messages(tx: Session, job_id: str) -> set[str]:
    query = select(FineTuningEvent.message).where(FineTuningEvent.job_id == job_id, FineTuningEvent.type == "message")
    return set(tx.scalars(query))


def last_reported_step(tx: Session, job_id: str) -> int:
    """A resumed run repeats steps; those up to this one are already told."""
    step = FineTuningEvent.data["step"].as_integer()
    query = select(func.max(step)).where(FineTuningEvent.job_id == job_id, FineTuningEvent.type == "metrics")
    return int(tx.scalar(query) or 0)
