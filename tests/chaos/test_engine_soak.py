"""Ten minutes of random arrivals, cancels and adapters that come and go: nothing leaks, every answer ends.

`GPTSTORE_SOAK_SECONDS` shortens it.
"""

import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.generation.tiny import Answer, ask, save_family, start_engine
from workers.generation.engine.engine import TorchEngine

SECONDS = float(os.environ.get("GPTSTORE_SOAK_SECONDS", "600"))
ADAPTERS = 40
OPEN = 48
MEGABYTE = 1 << 20


@dataclass
class Soak:
    """Drives one engine from one thread; `seed` decides everything but the timing."""

    engine: TorchEngine
    root: Path
    dice: random.Random
    open: list[Answer] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)

    def arrive(self) -> None:
        name = f"n{self.dice.randrange(ADAPTERS)}" if self.dice.random() < 0.7 else None
        if name is not None:
            self.engine.load_adapter(name, self.root / f"a{int(name[1:]) % 4}")
        beginning = [self.dice.randrange(300) for _ in range(40)] if self.dice.random() < 0.5 else [7] * 40
        prompt = beginning + [self.dice.randrange(300) for _ in range(self.dice.randrange(1, 120))]
        params = {"max_tokens": self.dice.randrange(1, 60), "temperature": self.dice.choice([0, 1]), "n": 1}
        params |= {"n": 3} if self.dice.random() < 0.1 else {}
        self.open.append(ask(self.engine, prompt, name, None, **params))

    def leave(self) -> None:
        answer = self.open.pop(self.dice.randrange(len(self.open)))
        if self.dice.random() < 0.2:
            self.engine.cancel(answer.handle)
        answer.wait()
        reason = str(answer.finish())
        self.ended[reason] = self.ended.get(reason, 0) + 1

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if len(self.open) < OPEN and (not self.open or self.dice.random() < 0.6):
                self.arrive()
            else:
                self.leave()
            if self.dice.random() < 0.05:
                self.engine.unload_adapter(f"n{self.dice.randrange(ADAPTERS)}")
        while self.open:
            self.leave()


@pytest.mark.timeout(SECONDS + 300)
def test_nothing_leaks_under_random_arrivals_cancels_and_adapters(tmp_path: Path) -> None:
    engine = start_engine(
        save_family("llama", tmp_path), kv_cache_tokens=1536, max_batch=16, adapter_memory_bytes=500_000
    )
    soak = Soak(engine, tmp_path, random.Random(7))  # noqa: S311 (no secret)
    process = psutil.Process()
    soak.run(SECONDS / 4)
    settled, threads = process.memory_info().rss, process.num_threads()
    soak.run(SECONDS * 3 / 4)
    stats = engine.stats()
    print(soak.ended, f"grew {(process.memory_info().rss - settled) / MEGABYTE:.1f} MB", stats)
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert stats.preemptions > 0 and {"length", "cancelled"} <= set(soak.ended)
    assert engine.bank.pinned == 0
    assert stats.adapter_bytes <= 500_000
    assert process.num_threads() == threads
    assert process.memory_info().rss - settled < 32 * MEGABYTE
    engine.close()
