"""What every engine is asked, and how its answer is timed."""

import random
import statistics
import time
from pathlib import Path
from typing import Protocol

from app.cli.demo_data import dialogues
from models_registry.prompt import Message, Renderer

NEW_TOKENS = 64
SHORTEST, LONGEST = 20, 400
ROUNDS = 3


class Subject(Protocol):
    """An engine under test. `generate` returns how many tokens it made."""

    label: str
    model: str

    def generate(self, prompts: list[list[int]]) -> int: ...

    def close(self) -> None: ...


def make_prompts(base: Path, count: int) -> list[list[int]]:
    """Distinct prompts of lengths spread evenly from SHORTEST to LONGEST tokens, in a fixed shuffle."""
    renderer = Renderer.load(base)
    chance = random.Random(1234)  # noqa: S311 (a protocol, not a secret)
    words = renderer.encode(" ".join(f"{question} {answer}" for question, answer in sorted(set(dialogues()))))
    frame = len(renderer.chat([Message("user", "")]))
    prompts = []
    for number in range(count):
        length = SHORTEST + (LONGEST - SHORTEST) * number // max(count - 1, 1)
        wanted = max(length - frame, 4)
        start = chance.randrange(len(words))
        text = renderer.decode([words[(start + at) % len(words)] for at in range(wanted)])
        prompts.append(renderer.chat([Message("user", f"{number}: {text}")]))
    chance.shuffle(prompts)
    return prompts


def rounds(subject: Subject, prompts: list[list[int]]) -> float:
    """Median tokens per second of ROUNDS, after one warm-up."""
    subject.generate(prompts)
    rates = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        made = subject.generate(prompts)
        rates.append(made / (time.perf_counter() - begun))
    return statistics.median(rates)
