"""The message that tells a training worker to look into Postgres."""

from sqlalchemy.orm import Session

from app.tasks import FINE_TUNING_QUEUE, TaskName, enqueue


def wake_worker(tx: Session) -> None:
    enqueue(tx, TaskName.FINE_TUNE, {}, FINE_TUNING_QUEUE)
