"""A process of its own for reading what people uploaded: its memory, time and bugs end with it.

A Parquet file of a megabyte may unfold to gigabytes, and libraries that judge text are big; neither may cost the
worker that keeps the leases of trainings.
"""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

MODULE = "workers.datasets.main"
REFUSED = 3
GIGABYTE = 1024**3
SECONDS = 1_800
RENEWAL = 1.0


class Work(BaseModel):
    """What the child is to do. `target`: the file it writes; `options`: of this `kind` of work.

    `memory` (bytes of address space) and `seconds` (of processor time) are its limits.
    """

    model_config = ConfigDict(frozen=True)
    kind: str
    source: Path
    against: Path | None = None
    target: Path | None = None
    options: dict[str, JsonValue] = {}
    memory: int = 4 * GIGABYTE
    seconds: int = SECONDS


class WorkRefused(Exception):
    """Why the file could not be worked on, for its owner."""


def run_child(work: Work, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """What the child found. `meanwhile` is called at once and every second. Raises WorkRefused, ChildBroke."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GPTSTORE_")}
    # One thread each: pools reserve address space by the number of processors, and that is what the limit counts.
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | threads | {"ARROW_DEFAULT_MEMORY_POOL": "system", "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
        text=True,
    )
    words: str | None = work.model_dump_json()
    try:
        meanwhile()
        while True:
            try:
                out, errors = process.communicate(words, timeout=RENEWAL)
                return outcome(process.returncode, out, errors)
            except subprocess.TimeoutExpired:
                words = None
                meanwhile()
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def outcome(code: int, out: str, errors: str) -> dict[str, Any]:
    if code == REFUSED:
        raise WorkRefused(out)
    if code == -signal.SIGXCPU:
        raise WorkRefused("reading the file took too long")
    if code or not out:
        # A bug or the end of memory; which of them is in the log, and the owner learns that it is the file.
        raise ChildBroke(f"code {code}: {(errors.strip().splitlines() or ['no message'])[-1][:300]}")
    answer: dict[str, Any] = Answer.model_validate_json(out).found
    return answer


class Answer(BaseModel):
    found: dict[str, Any]


class ChildBroke(Exception):
    """The child ended otherwise than by an answer."""


def limit(work: Work) -> None:
    """From here on this process has so much address space and processor time, and a parent. Called by the child."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    resource.setrlimit(resource.RLIMIT_AS, (work.memory, work.memory))
    resource.setrlimit(resource.RLIMIT_CPU, (work.seconds, work.seconds + 5))
    os.nice(5)


def end_with(parent: int) -> None:
    """A killed worker cannot stop its child."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def read_work(line: str) -> Work:
    """Raises ValueError."""
    try:
        return Work.model_validate_json(line)
    except ValidationError as error:
        raise ValueError("no work on stdin") from error
