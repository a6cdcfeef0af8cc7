"""What the relay does in Postgres when a worker falls silent. Each runs in a thread, in a transaction of its own."""

from app.billing import metering
from app.database import transaction
from app.errors import GenerationFailed, Unavailable
from app.inference.wire_events import GenerateTask
from app.settings import get_settings
from app.tasks import TaskName, enqueue, generation_queue, unsent


def resubmit(task: GenerateTask) -> GenerateTask:
    """The same call as a new attempt; the old attempt can no longer settle.

    Raises GenerationFailed if it did, and Unavailable, with nothing held, if the new one cannot be sent.
    """
    with transaction() as tx:
        attempt = metering.next_attempt(tx, task.generation_id, task.attempt, get_settings().generation.lease)
        if attempt is None:
            raise GenerationFailed("The worker stopped answering.")
        again = task.model_copy(update={"attempt": attempt})
        enqueue(tx, TaskName.GENERATE, {"task": again.model_dump(mode="json")}, generation_queue(task.base_id))
    if unsent(tx):
        give_up(again)
        raise unreachable()
    return again


def unreachable() -> Unavailable:
    return Unavailable("The store cannot reach its workers; try again.", retry_after=5)


def settle_delivered(task: GenerateTask, produced: int) -> None:
    """Charge the prompt and the tokens that reached the client; nothing if the worker settled first."""
    with transaction() as tx:
        metering.settle_call(tx, task.generation_id, task.attempt, len(task.token_ids), produced)


def give_up(task: GenerateTask) -> None:
    """Nothing was delivered, so nothing is charged."""
    with transaction() as tx:
        metering.release_call(tx, task.generation_id, task.attempt)


def renew(generation_ids: list[str]) -> None:
    with transaction() as tx:
        metering.renew_leases(tx, generation_ids, get_settings().generation.lease)
