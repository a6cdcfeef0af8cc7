"""What no peer is asked: many registered adapters, cold adapters, prefix reuse, memory, sameness. JSON lines, as
child.py."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from benchmarks import same
from benchmarks.int8 import int8
from benchmarks.ours import OurEngine
from benchmarks.protocol import FIRST_TOKEN_ROUNDS, NEW_TOKENS, Line, Prompts, Setup, line, rates

REGISTERED, ACTIVE = 1000, 16
MANY_ROUNDS = 4
ALONE = 32  # prompts
MEGABYTE = 1024 * 1024


def many(setup: Setup, prompts: Prompts, given: argparse.Namespace) -> Iterator[Line]:
    """16 active adapters alone, and after 1,000 went through the memory budget; in turns, for machines drift."""
    ours = OurEngine(setup)
    found: dict[int, list[float]] = {ACTIVE: [], REGISTERED: []}
    for _ in range(MANY_ROUNDS):
        for registered, its in found.items():
            for number in range(ACTIVE, REGISTERED):
                ours.engine.unload_adapter(f"other{number}")
            for number in range(ACTIVE, registered):
                ours.engine.load_adapter(f"other{number}", setup.adapters[number % ACTIVE])
            for folder in setup.adapters:
                ours.engine.load_adapter(folder.name, folder)
            its.append(statistics.median(rates(lambda: ours.generate(prompts.mixed[:ACTIVE], NEW_TOKENS), 10)))
    for registered, its in found.items():
        yield line(ours.label, "many", its, adapters=registered, streams=ACTIVE, version=ours.version)
    ours.close()


def cold(setup: Setup, prompts: Prompts, given: argparse.Namespace) -> Iterator[Line]:
    """Adapter's first load to its first token, and the same for a resident one; its file is in the page cache."""
    ours = OurEngine(setup)
    prompt = prompts.mixed[0]
    ours.first_token(prompt, ours.adapters[0])
    waits: dict[str, list[float]] = {"cold": [], "warm": []}
    for number in range(FIRST_TOKEN_ROUNDS):
        name, folder = f"new{number}", setup.adapters[number]
        for kind in waits:
            begun = milliseconds_now()
            ours.engine.load_adapter(name, folder)
            ours.first_token(prompt, name)
            waits[kind].append(milliseconds_now() - begun)
    for kind, found in waits.items():
        yield line(ours.label, kind, found, unit="ms", version=ours.version)
    ours.close()


def prefix(setup: Setup, prompts: Prompts, given: argparse.Namespace) -> Iterator[Line]:
    """1,500 shared tokens and 16 own: the first to come, and those after it."""
    ours = OurEngine(Setup(setup.base, (), setup.streams))
    ours.first_token(prompts.first)
    misses = [ours.first_token([shift, *prompts.long[0]]) for shift in range(3, 6)]
    ours.first_token(prompts.long[0], tenant="one")
    hits = [ours.first_token(prompt, tenant="one") for prompt in prompts.long[1:]]
    yield line(ours.label, "prefix miss", misses, unit="ms", version=ours.version)
    yield line(ours.label, "prefix hit", hits, unit="ms", version=ours.version)
    ours.close()


def lookup(setup: Setup, prompts: Prompts, given: argparse.Namespace) -> Iterator[Line]:
    """Prompts alone, greedy, with guesses and without by turns: all tokens by all time; guesses per token, and how many
    of them were right.
    """
    ours = OurEngine(Setup(setup.base, (), setup.streams))
    scheduler, ways = ours.engine.scheduler, {"guessing": ours.engine.scheduler.guessing, "not guessing": 0}
    ours.generate(prompts.mixed[:1], NEW_TOKENS)
    for new in (NEW_TOKENS, 4 * NEW_TOKENS):
        seconds, before = dict.fromkeys(ways, 0.0), ours.engine.stats()
        for number, prompt in enumerate(prompts.mixed[:ALONE]):
            for way in sorted(ways, reverse=number % 2 == 0):
                scheduler.guessing = ways[way]
                begun = time.perf_counter()
                ours.generate([prompt], new)
                seconds[way] += time.perf_counter() - begun
        for way, its in seconds.items():
            yield Line(ours.label, f"alone, {new} tokens, {way}", ALONE * new / its, version=ours.version)
        now = ours.engine.stats()
        guessed, right = now.guessed - before.guessed, now.guessed_right - before.guessed_right
        yield Line(ours.label, f"guesses, {new} tokens", guessed / (ALONE * new), unit="per token")
        yield Line(ours.label, f"right guesses, {new} tokens", right / max(guessed, 1), unit="of 1")
    ours.close()


def memory(setup: Setup, prompts: Prompts, given: argparse.Namespace) -> Iterator[Line]:
    """Megabytes of the process: what 16 adapters add, beside their own bytes; and what many requests add."""
    ours = OurEngine(Setup(setup.base, (), setup.streams))
    ours.generate(prompts.mixed[:ACTIVE], 8)
    before = resident()
    yield Line(ours.label, "memory base", before, unit="MB", version=ours.version)
    for folder in setup.adapters:
        ours.engine.load_adapter(folder.name, folder)
    ours.adapters = [folder.name for folder in setup.adapters]
    ours.generate(prompts.mixed[:ACTIVE], 8)
    yield Line(ours.label, "memory adapters", resident() - before, unit="MB", adapters=ACTIVE)
    yield Line(ours.label, "memory adapters' own", ours.engine.stats().adapter_bytes / MEGABYTE, unit="MB")
    sixteens = given.requests // ACTIVE
    ours.generate(prompts.short[:ACTIVE] * 4, 4)
    settled = resident()
    for _ in range(sixteens):
        ours.generate(prompts.short[:ACTIVE], 4)
    yield Line(ours.label, "memory growth", resident() - settled, unit="MB", streams=sixteens * ACTIVE)
    ours.close()


def resident() -> float:
    return float(psutil.Process().memory_info().rss) / MEGABYTE


def milliseconds_now() -> float:
    return time.perf_counter() * 1e3


WORKS: dict[str, Callable[[Setup, Prompts, argparse.Namespace], Iterator[Line]]] = {
    "many": many,
    "cold": cold,
    "prefix": prefix,
    "lookup": lookup,
    "memory": memory,
    "flips": same.flips,
    "equal": same.equal,
    "int8": int8,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default=",".join(WORKS))
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--requests", type=int, default=2000)
    given = parser.parse_args()
    folders = [given.work / "adapters" / str(number) for number in range(ACTIVE)]
    prompts = Prompts.load(given.work)
    for name in given.only.split(","):
        for each in WORKS[name](Setup(given.work / "base", folders, ACTIVE), prompts, given):
            each.say()


if __name__ == "__main__":
    main()
