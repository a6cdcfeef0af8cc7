"""The worker's background beats: calls reported alive, leases renewed, cancellations heard."""

import json
import threading
from collections.abc import Callable
from typing import cast

import redis
import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.billing import metering
from app.database import transaction
from app.inference.wire_events import ALIVE_FIELD, CANCELLATIONS, STREAM_MAXLEN, StreamEntries, token_stream
from app.settings import get_settings
from app.valkey import connect
from workers.generation.calls import OpenCalls
from workers.generation.engine.protocol import EngineStats

log = structlog.get_logger(__name__)

ALIVE_PERIOD = 1.0
LEASE_PERIOD = 5.0
LONG_CALL = 10.0
CANCEL_BLOCK_MS = 500
ANSWER_SECONDS = 5.0
LOG_PERIOD = 30.0


class Pulse:
    """Daemon threads; losing Valkey or Postgres for a while only makes them try again."""

    def __init__(self, calls: OpenCalls, stats: Callable[[], EngineStats]) -> None:
        self._calls, self._stats, self._logged = calls, stats, stats()
        self._stopped = threading.Event()
        self._lease = get_settings().generation.lease
        self._valkey = connect(ANSWER_SECONDS)
        self._last_cancel = self._newest_cancel()
        beats: list[tuple[Callable[[], None], float]] = [
            (self.report_alive, ALIVE_PERIOD),
            (self.renew_leases, LEASE_PERIOD),
            (self.hear_cancellations, 0.0),
            (self.log_figures, LOG_PERIOD),
        ]
        self._threads = [
            threading.Thread(target=self._beat, args=beat, name=beat[0].__name__, daemon=True) for beat in beats
        ]
        for thread in self._threads:
            thread.start()

    def report_alive(self) -> None:
        for replica, ids in self._calls.by_replica().items():
            self._valkey.xadd(
                token_stream(replica), {ALIVE_FIELD: json.dumps(ids)}, maxlen=STREAM_MAXLEN, approximate=True
            )

    def renew_leases(self) -> None:
        """One UPDATE for all long calls; short ones end within their first lease."""
        if ids := self._calls.older_than(LONG_CALL):
            with transaction() as tx:
                metering.renew_leases(tx, ids, self._lease)

    def log_figures(self) -> None:
        """What the engine did since the last time; an idle one says nothing."""
        before, now = self._logged, self._stats()
        self._logged = now
        if (steps := now.steps - before.steps) == 0:
            return
        produced, right = now.produced_tokens - before.produced_tokens, now.guessed_right - before.guessed_right
        log.info(
            "engine",
            tokens_per_second=round(produced / LOG_PERIOD, 1),
            batch_size=round((produced - right) / steps, 1),
            busy=round((now.busy_seconds - before.busy_seconds) / LOG_PERIOD, 2),
            running=now.running,
            waiting=now.waiting,
            cache_use=round(now.blocks_used / now.blocks_total, 2),
            adapters=now.adapters,
            preemptions=now.preemptions - before.preemptions,
            guessed=now.guessed - before.guessed,
            guessed_right=right,
        )

    def hear_cancellations(self) -> None:
        heard = self._valkey.xread({CANCELLATIONS: self._last_cancel}, block=CANCEL_BLOCK_MS)
        for _, entries in cast(StreamEntries, heard or []):
            for entry_id, fields in entries:
                self._last_cancel = entry_id
                for generation_id in fields.values():
                    self._calls.cancel(generation_id.decode())

    def close(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._valkey.close()

    def _newest_cancel(self) -> bytes:
        newest = cast(list[tuple[bytes, dict[bytes, bytes]]], self._valkey.xrevrange(CANCELLATIONS, count=1))
        return newest[0][0] if newest else b"0-0"

    def _beat(self, action: Callable[[], None], period: float) -> None:
        while not self._stopped.wait(period):
            try:
                action()
            except (redis.RedisError, SQLAlchemyError) as error:
                log.warning("pulse_missed", beat=action.__name__, error=str(error))
                self._stopped.wait(1.0)
