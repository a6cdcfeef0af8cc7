"""The Celery side of every worker: queues, limits, request ids in logs. Imports nothing heavy.

The pool is `threads`: one process, so a GPU is initialised once and an engine is shared by its tasks.
SIGTERM is a warm shutdown: running tasks finish, reserved ones go back to their queue.
"""

import warnings
from collections.abc import Sequence

import structlog
from celery import Celery, signals
from celery.platforms import SecurityWarning

from app.logs import configure_logs
from app.tasks import configure_broker
from workers.liveness import Figures, Liveness

log = structlog.get_logger(__name__)


def make_worker(queues: Sequence[str], concurrency: int = 4) -> Celery:
    """An app that consumes `queues`. Tasks register themselves on it: `@app.task(name=TaskName.X)`."""
    app = configure_broker(Celery("gptstore-worker", set_as_current=False))
    app.conf.update(
        worker_pool="threads",
        worker_concurrency=concurrency,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=True,
    )
    app.conf.task_default_queue = queues[0]
    app.conf.gptstore_queues = tuple(queues)
    return app


def run_worker(app: Celery, kind: str, base: str = "", figures: Figures = lambda: {}) -> None:
    """Consume until SIGTERM. Prints `ready` once consuming; keeps this worker's liveness key meanwhile.

    `figures`: what `/metrics` shows of this worker.
    """
    liveness = Liveness(kind, base, figures)
    # A container's only user is often root; the pool starts no shell and opens no pickle.
    warnings.simplefilter("ignore", SecurityWarning)
    configure_logs()

    def announce(**_: object) -> None:
        liveness.start()
        print(f"ready {kind}", flush=True)

    signals.worker_ready.connect(announce, weak=False)
    try:
        app.Worker(
            queues=list(app.conf.gptstore_queues),
            pool="threads",
            loglevel="WARNING",
            quiet=True,
            without_gossip=True,
            without_mingle=True,
        ).start()
    finally:
        signals.worker_ready.disconnect(announce)
        liveness.stop()


@signals.task_prerun.connect(weak=False)
def bind_request_id(task: object = None, task_id: str = "", **_: object) -> None:
    """Log lines of a task carry the id of the request that asked for it."""
    request = getattr(task, "request", None)
    header = getattr(request, "x_request_id", None) or (getattr(request, "headers", None) or {}).get("x_request_id", "")
    structlog.contextvars.bind_contextvars(request_id=header, task_id=task_id)


@signals.task_postrun.connect(weak=False)
def forget_request_id(**_: object) -> None:
    structlog.contextvars.clear_contextvars()
