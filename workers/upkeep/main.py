"""`gptstore upkeep`: a plain loop under a Postgres advisory lock, so that one of several does the work.

No Celery beat: upkeep must outlive Valkey, and its truth is in Postgres.
"""

import signal
import threading
from collections.abc import Callable

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.billing.metering import release_stale_calls
from app.database import engine, transaction
from app.files.delete import expire_files
from app.local.services import end_after_parent
from app.logs import configure_logs
from workers.upkeep.housekeeping import (
    forget_old_idempotency_keys,
    remove_artifacts_of_nobody,
    remove_bytes_left_behind,
    remove_orphaned_bytes,
)
from workers.upkeep.lost_tasks import (
    resend_checks,
    resend_imports,
    resend_reports,
    resend_validations,
    wake_fine_tuning,
)

log = structlog.get_logger(__name__)

LOCK = "gptstore upkeep"
PERIOD = 5.0
CHORES: list[tuple[Callable[[Session], int], int]] = [
    (release_stale_calls, 1),
    (wake_fine_tuning, 1),
    (resend_imports, 4),
    (resend_validations, 4),
    (resend_reports, 4),
    (resend_checks, 4),
    (expire_files, 12),
    (remove_bytes_left_behind, 12),
    (forget_old_idempotency_keys, 120),
    (remove_orphaned_bytes, 720),
    (remove_artifacts_of_nobody, 720),
]


def main() -> None:
    """Until SIGTERM. A lost database is tried again for ever."""
    end_after_parent()
    configure_logs()
    stopped = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stopped.set())
    print("ready upkeep", flush=True)
    while not stopped.is_set():
        try:
            keep_up(stopped)
        except SQLAlchemyError as error:
            log.warning("upkeep_interrupted", error=type(error).__name__)
            stopped.wait(1.0)


def keep_up(stopped: threading.Event) -> None:
    """Hold the lock on one connection and do the chores; without the lock, wait for its holder to end."""
    with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        beat = 0
        while not stopped.is_set():
            locked = connection.scalar(text("SELECT pg_try_advisory_lock(hashtext(:name))"), {"name": LOCK})
            while locked and not stopped.is_set():
                connection.execute(text("SELECT 1"))
                do_chores(beat)
                beat += 1
                stopped.wait(PERIOD)
            stopped.wait(PERIOD)


def do_chores(beat: int) -> None:
    """Each in a transaction of its own; one that fails does not stop the others."""
    for chore, every in CHORES:
        if beat % every:
            continue
        try:
            with transaction() as tx:
                done = chore(tx)
        except SQLAlchemyError as error:
            log.warning("chore_failed", chore=chore.__name__, error=str(error))
            continue
        if done:
            log.info("chore_done", chore=chore.__name__, count=done)


if __name__ == "__main__":
    main()
