"""The training process and the thread that keeps its lease. This process never imports torch."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

import structlog
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

from app.database import transaction
from app.fine_tuning.progress import renew
from workers.fine_tuning.neighbours import generation_is_busy
from workers.fine_tuning.spec import BUSY, CANCEL, IDLE, STOP, JobSpec, Report
from workers.fine_tuning.trouble import Ending, kernel_memory_kills, peak_memory

log = structlog.get_logger(__name__)

RECIPES = "workers.fine_tuning.recipes"
RENEWAL = 1.0


class Child:
    """A recipe in a process of its own: a crash of it is only a failed attempt, its memory is given back.

    It is started without the store's secrets, in a session of its own (Ctrl-C is for its supervisor to hear).
    """

    def __init__(self, spec: JobSpec) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the child)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GPTSTORE_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{RECIPES}.{spec.method}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,
            text=True,
            bufsize=1,
        )
        self._ordered: set[str] = set()
        self._kills_before = kernel_memory_kills()
        self.peak_memory = 0
        self.told_trouble: str | None = None
        self._say(spec.model_dump_json())

    @property
    def pid(self) -> int:
        return self._process.pid

    def reports(self) -> Iterator[Report]:
        """What it tells, until it ends."""
        if self._process.stdout is not None:
            for line in self._process.stdout:
                try:
                    report = Report.model_validate_json(line)
                except ValidationError:
                    log.warning("training_line_ignored", line=line[:200])
                    continue
                if report.event == "broken":
                    self.told_trouble = self.told_trouble or report.data["code"]
                yield report

    def order(self, what: str) -> None:
        """`cancel` or `stop`, obeyed as recipes.process says; saying it again changes nothing."""
        if what not in self._ordered:
            self._ordered.add(what)
            self._say(what)

    def hint(self, busy: bool) -> None:
        """Whether generation needs the machine; may change again and again."""
        word, other = (BUSY, IDLE) if busy else (IDLE, BUSY)
        if word == BUSY or other in self._ordered:
            self._ordered.discard(other)
            self.order(word)

    def measure(self) -> None:
        self.peak_memory = max(self.peak_memory, peak_memory(self._process.pid))

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> Ending:
        """Wait for its end."""
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
        kernel_killed = kernel_memory_kills() > self._kills_before
        return Ending(code, self.told_trouble, lines[-1][:300] if lines else "", kernel_killed)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        self._errors.close()

    def _say(self, line: str) -> None:
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            log.info("training_process_gone", pid=self._process.pid)


class Charge(Protocol):
    """What works under a lease."""

    def order(self, what: str) -> None: ...
    def hint(self, busy: bool) -> None: ...
    def measure(self) -> None: ...
    def kill(self) -> None: ...


class LeaseKeeper:
    """Renews the lease once a second while a child, or what precedes it, works; passes cancel and pause on.

    A child whose lease is lost is killed. `stopping` is set when the worker shuts down: the child then checkpoints
    and ends. `yields`: it hears whether generation needs the machine.
    """

    def __init__(
        self, job_id: str, token: int, lease: float, child: Charge, stopping: threading.Event, yields: bool = False
    ) -> None:
        self.lost = False
        self._yields = yields
        self._job_id, self._token, self._lease = job_id, token, lease
        self._child, self._stopping = child, stopping
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease-{job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        held_until = time.monotonic() + self._lease
        pause = 0.0  # what was ordered since the claim is heard at once
        while not self._done.wait(pause):
            pause = min(RENEWAL, self._lease / 3)
            if self._stopping.is_set():
                self._child.order(STOP)
            self._child.measure()
            if self._yields:
                self._child.hint(generation_is_busy())
            asked = time.monotonic()
            try:
                with transaction() as tx:
                    state = renew(tx, self._job_id, self._token, self._lease)
            except OperationalError as error:
                log.warning("lease_not_renewed", job_id=self._job_id, error=type(error).__name__)
                state = "held" if asked < held_until else "lost"
            else:
                held_until = asked + self._lease
            if state == "cancel_requested":
                self._child.order(CANCEL)
            elif state == "pause_requested":
                self._child.order(STOP)
            elif state == "lost":
                self.lost = True
                self._child.kill()
                return
