"""The calls that this worker has accepted and not yet ended; threads of the pulse read it, tasks write it."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from app.inference.wire_events import GenerateTask
from workers.generation.engine.protocol import Engine
from workers.generation.engine.request import Handle
from workers.generation.token_stream import Delivery

REMEMBERED_CANCELS = 10_000


@dataclass(eq=False)
class Call:
    """One attempt under way. `handle` is None until the engine has it; `admitted`: unix seconds."""

    task: GenerateTask
    delivery: Delivery
    handle: Handle | None = None
    cancelled: bool = False
    admitted: float = field(default_factory=time.time)


class OpenCalls:
    """By (generation, attempt). A cancel may overtake its task, so recent ones are remembered."""

    def __init__(self, engine: Engine, queue_timeout: float) -> None:
        self._engine = engine
        self._queue_timeout = queue_timeout
        self._calls: dict[tuple[str, int], Call] = {}
        self._early: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._calls)

    def open(self, task: GenerateTask) -> Call | None:
        """None for a second delivery of an attempt that is already here."""
        key = (task.generation_id, task.attempt)
        call = Call(task, Delivery(task.replica), admitted=task.deadline - self._queue_timeout)
        call.delivery.on_broken = lambda: self._cancel_calls([call])
        with self._lock:
            if key in self._calls:
                return None
            call.cancelled = task.generation_id in self._early
            self._calls[key] = call
            return call

    def attach(self, call: Call, handle: Handle) -> None:
        """The engine has it; a cancel that came in between takes effect now."""
        with self._lock:
            call.handle = handle
        if call.cancelled:
            self._engine.cancel(handle)

    def close(self, call: Call) -> None:
        with self._lock:
            self._calls.pop((call.task.generation_id, call.task.attempt), None)

    def cancel(self, generation_id: str) -> None:
        with self._lock:
            self._early[generation_id] = None
            if len(self._early) > REMEMBERED_CANCELS:
                self._early.popitem(last=False)
            calls = [call for (known, _), call in self._calls.items() if known == generation_id]
        self._cancel_calls(calls)

    def by_replica(self) -> dict[str, list[str]]:
        """Generation ids to report alive, per replica."""
        grouped: dict[str, list[str]] = {}
        with self._lock:
            for call in self._calls.values():
                grouped.setdefault(call.task.replica, []).append(call.task.generation_id)
        return grouped

    def older_than(self, seconds: float) -> list[str]:
        """Generations admitted longer ago than that: their first lease may be running out."""
        limit = time.time() - seconds
        with self._lock:
            return [call.task.generation_id for call in self._calls.values() if call.admitted <= limit]

    def _cancel_calls(self, calls: list[Call]) -> None:
        for call in calls:
            call.cancelled = True
            if call.handle is not None:
                self._engine.cancel(call.handle)
