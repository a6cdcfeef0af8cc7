"""Which bases have a generation worker now: one is started when a base is asked for, and the one unused longest ends to
make room. Knows no database and no Valkey."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

RESTART_PAUSE = 5.0


class Process(Protocol):
    """A worker that was started; as `subprocess.Popen`."""

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...

    def wait(self, timeout: float) -> int: ...


@dataclass
class Serving:
    process: Process
    used_at: float
    ending: bool = False


class Roster:
    """At most `most` workers; one that nobody asked for `idle_seconds` ends, one that died waits before it is started
    again. `clock` in seconds."""

    def __init__(
        self,
        start: Callable[[str], Process],
        most: int,
        idle_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start, self._most, self._idle_seconds, self._clock = start, most, idle_seconds, clock
        self._serving: dict[str, Serving] = {}
        self._not_before: dict[str, float] = {}

    @property
    def bases(self) -> frozenset[str]:
        return frozenset(self._serving)

    def tend(self, asked: Iterable[str]) -> None:
        """`asked`: bases with calls that wait or are under way."""
        now, asked = self._clock(), list(dict.fromkeys(asked))
        self._bury(now)
        for base in asked:
            if base in self._serving:
                self._serving[base].used_at = now
        for serving in self._serving.values():
            if now - serving.used_at >= self._idle_seconds:
                self._end(serving)
        for base in asked:
            if base not in self._serving and self._not_before.get(base, now) <= now:
                if len(self._serving) < self._most:
                    self._serving[base] = Serving(self._start(base), now)
                else:
                    self._make_room(asked)

    def stop(self) -> list[Process]:
        """Ask all to end; returns them."""
        for serving in self._serving.values():
            self._end(serving)
        return [serving.process for serving in self._serving.values()]

    def _make_room(self, asked: list[str]) -> None:
        """Nothing while all are in use, or one is ending already."""
        idle = [serving for base, serving in self._serving.items() if base not in asked]
        if idle and not any(serving.ending for serving in self._serving.values()):
            self._end(min(idle, key=lambda serving: serving.used_at))

    def _end(self, serving: Serving) -> None:
        if not serving.ending:
            serving.process.terminate()
            serving.ending = True

    def _bury(self, now: float) -> None:
        for base, serving in list(self._serving.items()):
            if serving.process.poll() is not None:
                del self._serving[base]
                if not serving.ending:
                    self._not_before[base] = now + RESTART_PAUSE
