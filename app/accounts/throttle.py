"""Slows guessing: failed sign-ins and keys are counted per caller, in this process, over a minute."""

import threading
import time
from collections import OrderedDict, deque

from app.errors import RateLimited

WINDOW_SECONDS = 60
MAX_CALLERS = 10_000


class FailureThrottle:
    """Counts failures by name (address + key prefix). The oldest names are forgotten first, so memory is bounded."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, name: str) -> None:
        """Raises RateLimited while `name` has used up its failures."""
        with self._lock:
            failures = self._failures.get(name)
            while failures and failures[0] <= time.monotonic() - WINDOW_SECONDS:
                failures.popleft()
            if failures and len(failures) >= self.per_minute:
                wait = int(failures[0] + WINDOW_SECONDS - time.monotonic()) + 1
                raise RateLimited("Too many failed attempts; try again later.", retry_after=wait)

    def failed(self, name: str) -> None:
        with self._lock:
            self._failures.setdefault(name, deque()).append(time.monotonic())
            self._failures.move_to_end(name)
            while len(self._failures) > MAX_CALLERS:
                self._failures.popitem(last=False)
