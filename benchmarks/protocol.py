"""What every engine is asked and how its answers are timed. Only the standard library: peers import it too.

N streams are the first N of 64 distinct prompts, sent at once, greedy, end-of-sequence ignored, no prefix cache. One
warm-up, then up to three rounds within `seconds`; the value is the median of all generated tokens divided by wall
time, prefill included. Nothing else may run meanwhile.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

ROUNDS = 3
FIRST_TOKEN_ROUNDS = 5
NEW_TOKENS = 64
DECODE_TOKENS = 128


@dataclass(frozen=True)
class Line:
    """One figure. `unit`: `tok/s`, `ms`, `MB` or `ratio`; low and high are over the rounds."""

    engine: str
    work: str
    value: float
    unit: str = "tok/s"
    adapters: int = 0
    streams: int = 1
    low: float = 0.0
    high: float = 0.0
    rounds: int = 1
    version: str = ""

    def say(self) -> None:
        print(json.dumps(asdict(self)), flush=True)


@dataclass(frozen=True)
class Setup:
    """The same for all: a base folder, LoRA folders (none: the base alone), the most streams, an engine's own word."""

    base: Path
    adapters: Sequence[Path]
    streams: int
    option: str = ""


class Subject(Protocol):
    """An engine under test, built from a Setup."""

    label: str
    version: str

    def generate(self, prompts: Sequence[list[int]], new: int) -> int:
        """How many tokens it made. With adapters, stream i uses adapter i modulo their number."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Prompts:
    """Token ids. `mixed`: 20 to 400 tokens; `short`: 16 each; `first`: 400; `long`: 1,500 shared and its ends."""

    mixed: list[list[int]]
    short: list[list[int]]
    first: list[int]
    long: list[list[int]]

    @staticmethod
    def load(work: Path) -> "Prompts":
        return Prompts(**json.loads((work / "prompts.json").read_text()))


@dataclass(frozen=True)
class Task:
    """`new` tokens for each of the first N prompts."""

    name: str
    prompts: Sequence[list[int]]
    new: int


def rates(run: Callable[[], int], seconds: float) -> list[float]:
    """Tokens per second of each round, after one warm-up."""
    run()
    found: list[float] = []
    begun = time.perf_counter()
    while len(found) < ROUNDS and (not found or time.perf_counter() - begun < seconds):
        started = time.perf_counter()
        made = run()
        found.append(made / (time.perf_counter() - started))
    return found


def milliseconds(run: Callable[[], object], rounds: int = FIRST_TOKEN_ROUNDS) -> list[float]:
    """Of each round, after one warm-up."""
    run()
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        found.append((time.perf_counter() - started) * 1e3)
    return found


def line(engine: str, work: str, values: Sequence[float], **rest: object) -> Line:
    """The median of the rounds."""
    spread = {"low": min(values), "high": max(values), "rounds": len(values)}
    return Line(engine, work, statistics.median(values), **spread, **rest)  # type: ignore[arg-type]


def throughput(subject: Subject, setup: Setup, task: Task, streams: Sequence[int], seconds: float) -> Iterator[Line]:
    """A line per number of streams. Raises RuntimeError for an engine that made fewer tokens than asked."""
    for n in streams:
        chosen = task.prompts[:n]

        def once(chosen: Sequence[list[int]] = chosen) -> int:
            made = subject.generate(chosen, task.new)
            if made != len(chosen) * task.new:
                raise RuntimeError(f"{subject.label} made {made} tokens of {len(chosen) * task.new}")
            return made

        found, adapters = rates(once, seconds), len(setup.adapters)
        yield line(subject.label, task.name, found, adapters=adapters, streams=n, version=subject.version)


def first_token(subject: Subject, prompt: list[int], adapters: int) -> Line:
    found = milliseconds(lambda: subject.generate([prompt], 1))
    return line(subject.label, "first", found, unit="ms", adapters=adapters, version=subject.version)
