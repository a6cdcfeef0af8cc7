"""Calls that end together are settled together: one transaction for all that wait while another is under way.

In one step dozens of answers may end. As many transactions would wait for the same disk, and those of one account for
its wallet, while as many threads take the processors from the engine.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue

import structlog
from sqlalchemy.exc import OperationalError

from app.billing.metering import Ending, end_calls
from app.database import transaction

log = structlog.get_logger(__name__)

ATTEMPTS = 6
Asked = tuple[Ending, Future[None]]


class Settler:
    """One thread, the only one of its worker that ends calls."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Asked | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="settler", daemon=True)
        self._thread.start()

    def settle(self, ending: Ending) -> None:
        """Wait until it is booked, was ended by another, or Postgres stayed away: then upkeep releases the hold."""
        booked: Future[None] = Future()
        self._queue.put((ending, booked))
        booked.result()

    @property
    def waiting(self) -> int:
        """Asked for while another settlement is under way."""
        return self._queue.qsize()

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        asked: list[Asked | None] = []
        while None not in asked:
            asked = [self._queue.get()]
            while not self._queue.empty():
                asked.append(self._queue.get())
            self._settle([each for each in asked if each is not None])

    def _settle(self, asked: Sequence[Asked]) -> None:
        """What cannot be booked must not keep the others from it: then each is tried alone."""
        try:
            book([ending for ending, _ in asked])
        except Exception as error:  # noqa: BLE001 (raised again where it was asked for)
            if len(asked) > 1:
                log.warning("settled_one_by_one", count=len(asked), error=str(error))
                for each in asked:
                    self._settle([each])
                return
            asked[0][1].set_exception(error)
            return
        for _, booked in asked:
            booked.set_result(None)


def book(endings: Sequence[Ending]) -> None:
    """Postgres may be restarting: try for a while."""
    for attempt in range(ATTEMPTS):
        try:
            with transaction() as tx:
                end_calls(tx, endings)
            return
        except OperationalError as error:
            log.warning("settlement_retried", attempt=attempt, error=str(error.orig))
            time.sleep(0.2 * 2**attempt)
    log.error("settlement_given_up", count=len(endings))
