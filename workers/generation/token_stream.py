"""Tokens on their way to the API: one stream entry for each replica and what came up since the last, which is a step
or, while a sending takes longer, a few. Off the engine's thread.

"Produced" means published here: only what Valkey accepted counts towards the bill. Nothing is sent twice:
a failed send ends the calls it carried, for a repeated entry would repeat text in a client's answer.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from queue import SimpleQueue

import redis
import structlog

from app.inference.wire_events import EVENTS_FIELD, STREAM_MAXLEN, Events, TokenEvent, token_stream

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class Delivery:
    """One call's way to its replica. `published`: tokens that arrived; `broken`: some did not."""

    replica: str
    published: int = 0
    broken: bool = False
    on_broken: Callable[[], None] = field(default=lambda: None)


@dataclass
class Parcel:
    """What one or more steps have for the replicas, in order; `sent` is set once it was tried."""

    events: list[tuple[Delivery, TokenEvent]] = field(default_factory=list)
    sent: threading.Event | None = None


class TokenStream:
    """`add` events, then `end_step`; a publisher thread does the sending."""

    def __init__(self, valkey: redis.Redis) -> None:
        self._valkey = valkey
        self._pending: list[tuple[Delivery, TokenEvent]] = []
        self._lock = threading.Lock()
        self._queue: SimpleQueue[Parcel | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="token-stream", daemon=True)
        self._thread.start()

    def add(self, delivery: Delivery, event: TokenEvent) -> None:
        with self._lock:
            self._pending.append((delivery, event))

    def end_step(self) -> None:
        """Hand over what was added; returns at once."""
        with self._lock:
            if self._pending:
                self._queue.put(Parcel(self._pending))
                self._pending = []

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until all that was added before has been tried."""
        self.end_step()
        marker = Parcel(sent=threading.Event())
        self._queue.put(marker)
        assert marker.sent is not None  # noqa: S101 (set one line above)
        marker.sent.wait(timeout)

    def close(self) -> None:
        self.end_step()
        self._queue.put(None)
        self._thread.join()
        self._valkey.close()

    def _run(self) -> None:
        """What came up while a send was under way goes with the next one."""
        parcels: list[Parcel | None] = []
        while None not in parcels:
            parcels = [self._queue.get()]
            while not self._queue.empty():
                parcels.append(self._queue.get())
            whole = [parcel for parcel in parcels if parcel is not None]
            for replica, events in _by_replica(event for parcel in whole for event in parcel.events).items():
                self._send(replica, events)
            for parcel in whole:
                if parcel.sent is not None:
                    parcel.sent.set()

    def _send(self, replica: str, events: list[tuple[Delivery, TokenEvent]]) -> None:
        whole = [(delivery, event) for delivery, event in events if not delivery.broken]
        if not whole:
            return
        body = Events.dump_json([event for _, event in whole], exclude_defaults=True)
        try:
            self._valkey.xadd(token_stream(replica), {EVENTS_FIELD: body}, maxlen=STREAM_MAXLEN, approximate=True)
        except redis.RedisError as error:
            log.warning("tokens_not_published", replica=replica, error=str(error))
            for delivery in {id(delivery): delivery for delivery, _ in whole}.values():
                delivery.broken = True
                delivery.on_broken()
            return
        for delivery, event in whole:
            delivery.published += len(event.ids)


def _by_replica(
    events: Iterable[tuple[Delivery, TokenEvent]],
) -> dict[str, list[tuple[Delivery, TokenEvent]]]:
    grouped: dict[str, list[tuple[Delivery, TokenEvent]]] = {}
    for delivery, event in events:
        grouped.setdefault(delivery.replica, []).append((delivery, event))
    return grouped
