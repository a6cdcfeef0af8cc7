"""Work for the workers, by name. A task is remembered with the transaction and sent after its commit.

A lost message is no lost work: the row says what is due, and upkeep sends it again.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import dropwhile
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from sqlalchemy.orm import Session

from app.settings import get_settings

log = structlog.get_logger(__name__)

FINE_TUNING_QUEUE = "fine_tuning"
DATASETS_QUEUE = "datasets"
MODEL_IMPORT_QUEUE = "model_import"
SEND_TIMEOUT = 1.0


class TaskName(StrEnum):
    """The only thing app/ and workers/ share about a task."""

    GENERATE = "generation.generate"
    CHECK_VERSION = "generation.check_version"
    FINE_TUNE = "fine_tuning.run"
    VALIDATE_FILE = "fine_tuning.validate_file"
    COUNT_FILE = "fine_tuning.count_file"
    REPORT_FILE = "datasets.report"
    IMPORT_BASE = "model_import.run"
    MERGE_VARIANT = "model_import.merge"


@dataclass(frozen=True)
class Enqueued:
    name: TaskName
    payload: dict[str, Any]
    queue: str


def generation_queue(base_id: str) -> str:
    """One queue per base: a worker holds one base in memory."""
    return f"generation.{base_id}"


def broker_url(redis_url: str) -> str:
    """Celery spells a Unix socket its own way."""
    return redis_url.replace("unix://", "redis+socket://", 1)


def configure_broker(celery: Celery) -> Celery:
    """Settings that sender and workers share. The message is a wake-up: the claim in Postgres decides."""
    celery.conf.update(
        broker_url=broker_url(get_settings().redis_url),
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_create_missing_queues=True,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "socket_connect_timeout": 1.0,
            # kombu's own default is a hundred tries, two minutes in which a request or a chore hangs
            "max_retries": 1,
            "interval_start": 0,
            "interval_max": 0.2,
            "visibility_timeout": 3600,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        },
    )
    return celery


@lru_cache
def sender() -> Celery:
    """Of those who only send. A broker that takes connections and answers nothing is given up as soon as a dead one;
    workers wait for theirs, since they block on it. Each of the API's threads may wait by itself.
    """
    celery = configure_broker(Celery("gptstore"))
    celery.conf.broker_transport_options |= {"socket_timeout": SEND_TIMEOUT}
    celery.conf.broker_pool_limit = get_settings().api.threads
    return celery


def enqueue(tx: Session, name: TaskName, payload: dict[str, Any], queue: str) -> None:
    """Send `name(**payload)` to `queue` once `tx` has committed."""
    tx.info.setdefault("enqueued", []).append(Enqueued(name, payload, queue))


def send_enqueued(session: Session) -> None:
    """Send what the committed transaction asked for. A failed send is logged, never raised.

    What comes after it is not tried: each would wait as long in vain.
    """
    session.info["unsent"] = list(dropwhile(send, session.info.pop("enqueued", [])))


def unsent(session: Session) -> list[Enqueued]:
    """For what nobody will send again: the tasks of this ended transaction that may never arrive."""
    found: list[Enqueued] = session.info.get("unsent", [])
    return found


def send(task: Enqueued) -> bool:
    request_id = structlog.contextvars.get_contextvars().get("request_id", "")
    try:
        sender().send_task(
            task.name.value,
            kwargs=task.payload,
            queue=task.queue,
            headers={"x_request_id": request_id},
            kwargsrepr="",  # Celery would write the arguments out a second time, for logs: people's prompts
            retry=False,
        )
    except (KombuError, RedisError, OSError) as error:
        log.warning("task_not_sent", task=task.name.value, queue=task.queue, error=str(error))
        return False
    return True
