"""Tells the streams of this process that a job has new events: Postgres notifies on commit, one connection listens."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import structlog
from sqlalchemy.engine import make_url

from app.errors import Overloaded, RateLimited
from app.fine_tuning.events import CHANNEL
from app.settings import get_settings

log = structlog.get_logger(__name__)

RETRY = 1.0
MOST_STREAMS, MOST_STREAMS_PER_ACCOUNT = 1000, 50


class Bell:
    """Listens from the first stream on. A lost connection is tried again; streams look for themselves meanwhile."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._open: Counter[str] = Counter()
        self._listening: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    def check_room(self, account_id: str) -> None:
        """Raises RateLimited when the account has its share of streams, Overloaded when this process has as many as it
        can bear.
        """
        if self._open[account_id] >= MOST_STREAMS_PER_ACCOUNT:
            text = f"You have {MOST_STREAMS_PER_ACCOUNT} event streams open; close one."
            raise RateLimited(text, retry_after=10)
        if self._open.total() >= MOST_STREAMS:
            raise Overloaded("Too many event streams are open; try again later.", retry_after=10)

    @contextmanager
    def ringing(self, job_id: str, account_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job, of this account, has something new."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())
        rung = asyncio.Event()
        self._waiting[job_id].add(rung)
        self._open[account_id] += 1
        try:
            yield rung
        finally:
            self._open -= Counter([account_id])
            self._waiting[job_id].discard(rung)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _listen(self) -> None:
        url = make_url(get_settings().database_url).set(drivername="postgresql")
        while True:
            try:
                address = url.render_as_string(hide_password=False)
                async with await psycopg.AsyncConnection.connect(address, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    # What came before was not heard.
                    for job_id in list(self._waiting):
                        self._ring(job_id)
                    async for note in connection.notifies():
                        self._ring(note.payload)
            except psycopg.Error as error:
                log.warning("events_not_heard", error=type(error).__name__)
            await asyncio.sleep(RETRY)

    def _ring(self, job_id: str) -> None:
        for rung in self._waiting.get(job_id, ()):
            rung.set()
