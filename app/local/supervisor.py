"""Keeps the parts of an embedded store alive: starts them in order, restarts what dies, stops all cleanly.

Everything is started and watched from the main thread (see services.die_with_parent).
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from app.local.services import Service, ServiceError, die_with_parent

POLL_SECONDS = 0.2
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
STEADY_SECONDS = 30.0
STOP_SECONDS = 20.0


class Journal:
    """Where the parts' lines go: always to `<folder>/<part>.log`, and to the terminal unless quiet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.quiet = False
        folder.mkdir(parents=True, exist_ok=True)

    def say(self, line: str) -> None:
        """The supervisor's own words are always shown."""
        print(line, flush=True)

    def follow(self, name: str, source: IO[bytes], on_line: Callable[[str], None]) -> None:
        """Copy `source` until it ends, in a thread of its own."""

        def copy() -> None:
            with (self.folder / f"{name}.log").open("ab") as log:
                for raw in source:
                    log.write(raw)
                    log.flush()
                    line = raw.decode("utf-8", "replace").rstrip()
                    on_line(line)
                    if not self.quiet:
                        print(f"{name:12} | {line}", flush=True)

        threading.Thread(target=copy, name=f"log-{name}", daemon=True).start()


@dataclass
class Part:
    """One process to keep alive. `start` returns it running; `ready` is set when it says so."""

    name: str
    start: Callable[["Part"], Service]
    ready: threading.Event = field(default_factory=threading.Event)
    service: Service | None = None
    started_at: float = 0.0
    pause: float = FIRST_PAUSE
    retry_at: float = 0.0


class Supervisor:
    """`launch` parts in order, then `watch` until told to stop."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.parts: list[Part] = []
        self.stopping = threading.Event()

    def stop_on_signals(self) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda *_: self.stopping.set())

    def launch(self, part: Part) -> Service:
        """Start it for the first time; a failure here ends `up`. A predecessor may still be shutting down: wait."""
        self.parts.append(part)
        deadline = time.monotonic() + STOP_SECONDS
        while True:
            try:
                return self._start(part)
            except ServiceError:
                if time.monotonic() > deadline or self.stopping.wait(FIRST_PAUSE):
                    raise

    def wait_ready(self, parts: list[Part]) -> bool:
        """True once all are ready; False when told to stop first. Dead parts are restarted meanwhile."""
        while not all(part.ready.is_set() for part in parts):
            self.tend()
            if self.stopping.wait(POLL_SECONDS):
                return False
        return True

    def watch(self) -> None:
        while not self.stopping.wait(POLL_SECONDS):
            self.tend()

    def tend(self) -> None:
        """Notice dead parts, and restart each when its pause is over."""
        for part in self.parts:
            if part.service is not None and (code := part.service.process.poll()) is not None:
                self._bury(part, code)
            if part.service is None and time.monotonic() >= part.retry_at:
                self._revive(part)

    def stop(self) -> None:
        """The last started stops first; the services that all depend on stop last."""
        for part in reversed(self.parts):
            if part.service is not None:
                part.service.stop(STOP_SECONDS)

    def _start(self, part: Part) -> Service:
        part.service = part.start(part)
        part.started_at = time.monotonic()
        return part.service

    def _bury(self, part: Part, code: int) -> None:
        if time.monotonic() - part.started_at > STEADY_SECONDS:
            part.pause = FIRST_PAUSE
        self.journal.say(f"{part.name} ended with code {code}; restarting in {part.pause:.1f} s")
        part.ready.clear()
        part.service = None
        part.retry_at = time.monotonic() + part.pause
        part.pause = min(part.pause * 2, LONGEST_PAUSE)

    def _revive(self, part: Part) -> None:
        try:
            self._start(part)
        except ServiceError as error:
            self.journal.say(f"{part.name} did not start: {error}; again in {part.pause:.1f} s")
            part.retry_at = time.monotonic() + part.pause
            part.pause = min(part.pause * 2, LONGEST_PAUSE)


def process_part(name: str, arguments: list[str], environment: dict[str, str], journal: Journal) -> Part:
    """A part that is `gptstore …` in a process of its own and prints `ready …` when it serves."""

    def start(part: Part) -> Service:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | environment | {"PYTHONUNBUFFERED": "1"},
            preexec_fn=die_with_parent,
            start_new_session=True,
        )
        assert process.stdout is not None  # noqa: S101 (asked for two lines above)
        journal.follow(name, process.stdout, lambda line: part.ready.set() if line.startswith("ready ") else None)
        return Service(name, "", process, signal.SIGTERM)

    return Part(name, start)


def service_part(name: str, start: Callable[[IO[bytes]], Service], journal: Journal) -> Part:
    """A part that is Postgres or Valkey: `start` itself waits until it is ready."""

    def begin(part: Part) -> Service:
        with (journal.folder / f"{name}.log").open("ab") as log:
            service = start(log)
        part.ready.set()
        return service

    return Part(name, begin)
