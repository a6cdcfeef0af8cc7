"""Calls that end together are settled together: one transaction for all that wait while another is under way.

In one step dozens of answers may end. As many transactions would wait for the same disk, and those of one account for
its wallet, while as many threads take the processors from the engine.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

import structlog
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.billing.metering import Ending, end_calls
from app.database import transaction

log = structlog.get_logger(__name__)

PATIENCE = 40.0  # seconds
PAUSE = 0.1
# A wallet is locked for milliseconds. One that is longer must not hold up the settlement of the others.
BRIEFLY = text("SET LOCAL lock_timeout = '500ms'")


@dataclass(eq=False)
class Asked:
    """What is to be booked, and who waits for it; `until`: when upkeep is left to release the hold."""

    ending: Ending
    booked: Future[None] = field(default_factory=Future)
    until: float = field(default_factory=lambda: time.monotonic() + PATIENCE)


class Settler:
    """One daemon thread, the only one of its worker that ends calls: it settles what waits until the process ends."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Asked] = SimpleQueue()
        threading.Thread(target=self._run, name="settler", daemon=True).start()

    def ask(self, ending: Ending) -> Future[None]:
        """Done once it is booked, was ended by another, or Postgres stayed away; raises what forbids the booking."""
        asked = Asked(ending)
        self._queue.put(asked)
        return asked.booked

    def _run(self) -> None:
        late: list[Asked] = []
        while True:
            fresh = [] if late else [self._queue.get()]
            while not self._queue.empty():
                fresh.append(self._queue.get())
            # What had to wait is tried alone: it may have to again.
            late = [*settle(fresh), *(again for each in late for again in settle([each]))]
            if late:
                time.sleep(PAUSE)


def settle(asked: Sequence[Asked]) -> list[Asked]:
    """Returns what must be tried again: Postgres is restarting, or a wallet is locked."""
    waiting = [each for each in asked if not given_up(each)]
    if not waiting:
        return []
    try:
        book([each.ending for each in waiting])
    except Exception as error:
        if len(waiting) > 1:
            log.warning("settled_one_by_one", count=len(waiting), error=str(error))
            return [again for each in waiting for again in settle([each])]
        generation_id = waiting[0].ending.generation_id
        if isinstance(error, OperationalError):
            log.warning("settlement_retried", generation_id=generation_id, error=str(error.orig))
            return waiting
        log.exception("settlement_failed", generation_id=generation_id)
        waiting[0].booked.set_exception(error)
        return []
    for each in waiting:
        each.booked.set_result(None)
    return []


def given_up(asked: Asked) -> bool:
    if time.monotonic() < asked.until:
        return False
    log.error("settlement_given_up", generation_id=asked.ending.generation_id)
    asked.booked.set_result(None)
    return True


def book(endings: Sequence[Ending]) -> None:
    with transaction() as tx:
        tx.execute(BRIEFLY)
        end_calls(tx, endings)
