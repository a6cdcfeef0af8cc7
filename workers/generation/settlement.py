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
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError, SQLAlchemyError

from app.billing.metering import Ending, end_calls
from app.database import transaction

log = structlog.get_logger(__name__)

PATIENCE = 40.0  # seconds
PAUSE = 0.2
# A wallet is locked for milliseconds. One that is longer must not hold up what other accounts have to settle.
BRIEFLY = text("SET LOCAL lock_timeout = '200ms'")
HOPELESS = (DataError, IntegrityError, ProgrammingError)


@dataclass(eq=False)
class Asked:
    """What is to be booked, and who waits for it; `until`: how long it is tried."""

    account_id: str
    ending: Ending
    booked: Future[None] = field(default_factory=Future)
    until: float = field(default_factory=lambda: time.monotonic() + PATIENCE)


class Settler:
    """One daemon thread, the only one of its worker that ends calls. The pool of tasks ends before it does, so whoever
    waits for a settlement has it.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[Asked] = SimpleQueue()
        self._late: dict[str, list[Asked]] = {}  # by account
        threading.Thread(target=self._run, name="settler", daemon=True).start()

    def ask(self, account_id: str, ending: Ending) -> Future[None]:
        """Done once it is booked or was ended by another, or was tried for long: then upkeep releases the hold. Raises
        what forbids the booking.
        """
        asked = Asked(account_id, ending)
        self._queue.put(asked)
        return asked.booked

    def _run(self) -> None:
        while True:
            fresh = [] if self._late else [self._queue.get()]
            while not self._queue.empty():
                fresh.append(self._queue.get())
            try:
                self._settle(fresh)
                self._settle_late()
            except Exception as error:  # noqa: BLE001 (told to all that wait)
                self._fail(fresh, error)

    def _settle(self, fresh: Sequence[Asked]) -> None:
        """All in one transaction; what it fails for is found account by account."""
        batch = [each for each in fresh if each.account_id not in self._late]
        try:
            book(batch)
        except Exception as error:  # noqa: BLE001 (tried again by account, where it is sorted out)
            log.warning("settlement_put_off", count=len(batch), error=str(error))
        for each in fresh:
            if not each.booked.done():
                self._late.setdefault(each.account_id, []).append(each)

    def _settle_late(self) -> None:
        """Account by account, until one must go on waiting: it comes last the next time."""
        for account_id in list(self._late):
            if left := tried_again(self._late.pop(account_id)):
                self._late[account_id] = left
                time.sleep(PAUSE)
                return

    def _fail(self, fresh: Sequence[Asked], error: Exception) -> None:
        """Whatever went wrong here, nobody waits for ever."""
        lost = {each for group in (fresh, *self._late.values()) for each in group if not each.booked.done()}
        self._late.clear()
        for each in lost:
            each.booked.set_exception(error)


def tried_again(asked: Sequence[Asked]) -> list[Asked]:
    """Of one account; returns what must go on waiting: Postgres is restarting, or the wallet is locked."""
    try:
        book(asked)
    except Exception as error:
        if isinstance(error, SQLAlchemyError) and not isinstance(error, HOPELESS):
            return [each for each in asked if not given_up(each)]
        if len(asked) > 1:
            return [left for each in asked for left in tried_again([each])]
        log.exception("settlement_failed", generation_id=asked[0].ending.generation_id)
        asked[0].booked.set_exception(error)
    return []


def given_up(asked: Asked) -> bool:
    if time.monotonic() < asked.until:
        return False
    log.error("settlement_given_up", generation_id=asked.ending.generation_id)
    asked.booked.set_result(None)
    return True


def book(asked: Sequence[Asked]) -> None:
    if asked:
        with transaction() as tx:
            tx.execute(BRIEFLY)
            end_calls(tx, [each.ending for each in asked])
        for each in asked:
            each.booked.set_result(None)
