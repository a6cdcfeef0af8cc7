"""A worker's sign of life: a key in Valkey that fades within seconds of the worker's death.

`worker:{kind}:{id}` → JSON {kind, base, pid, host, figures}: readiness counts these keys, `/metrics` shows the figures.
"""

import json
import os
import secrets
import socket
import threading
from collections.abc import Callable, Mapping

import redis
import structlog

from app.valkey import connect

log = structlog.get_logger(__name__)

LIFETIME = 5
PERIOD = 1.5
Figures = Callable[[], Mapping[str, float]]


class Liveness:
    """Refreshes the key from a thread of its own until stopped; losing Valkey is only a pause."""

    def __init__(self, kind: str, base: str = "", figures: Figures = lambda: {}) -> None:
        self.key = f"worker:{kind}:{secrets.token_hex(6)}"
        self._who = {"kind": kind, "base": base, "pid": os.getpid(), "host": socket.gethostname()}
        self._figures = figures
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="liveness", daemon=True)
        self._valkey = connect(2.0)

    def start(self) -> None:
        """Idempotent: Celery announces readiness again after each reconnect."""
        if not self._thread.is_alive() and not self._stopped.is_set():
            self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        try:
            self._valkey.delete(self.key)
        except redis.RedisError as error:
            log.warning("liveness_key_left_to_fade", error=str(error))
        self._valkey.close()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._valkey.set(self.key, json.dumps(self._who | {"figures": self._figures()}), ex=LIFETIME)
            except redis.RedisError as error:
                log.warning("liveness_not_reported", error=str(error))
            self._stopped.wait(PERIOD)
