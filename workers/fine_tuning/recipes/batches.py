"""Which rows make which step: a function of (seed, step) alone, so a resumed run sees what it would have seen."""

import math
import random
from collections.abc import Sequence

POOL = 16


def steps_per_epoch(rows: int, batch_size: int) -> int:
    return math.ceil(rows / batch_size)


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Row numbers by step. Rows of a batch have similar lengths: shuffled, sorted within pools, shuffled again."""
    chance = random.Random(f"{seed}/{epoch}")  # noqa: S311 (an order, not a secret)
    order = list(range(len(lengths)))
    chance.shuffle(order)
    batches = []
    for begin in range(0, len(order), POOL * batch_size):
        pool = sorted(order[begin : begin + POOL * batch_size], key=lambda row: (lengths[row], row))
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    chance.shuffle(batches)
    return batches


def split_batch(batch: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Parts of at most `max_tokens` (or one row): their gradients add up, memory stays bounded."""
    parts: list[list[int]] = [[]]
    filled = 0
    for row in batch:
        if parts[-1] and filled + lengths[row] > max_tokens:
            parts.append([])
            filled = 0
        parts[-1].append(row)
        filled += lengths[row]
    return parts


def share(batch: Sequence[int], lengths: Sequence[int], max_tokens: int, number: int, devices: int) -> list[list[int]]:
    """The parts of device `number`. All devices have as many, so that they meet at each: at the end some are empty."""
    parts = [split_batch(batch[each::devices], lengths, max_tokens) for each in range(devices)]
    return parts[number] + [[]] * (max(map(len, parts)) - len(parts[number]))


def learning_rate(step: int, total: int, peak: float, most_warm: int = 20) -> float:
    """Linear warm-up over the first tenth (at most `most_warm` steps), then a cosine down to a tenth of the peak."""
    warm = max(1, min(most_warm, total // 10))
    if step < warm:
        return peak * (step + 1) / warm
    progress = (step - warm) / max(1, total - warm)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
