"""A token per row of logits: the likeliest, or a draw from the softmax by inverse CDF with a given uniform number."""

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from workers.generation.engine.cpu.openmp import Kernel
from workers.generation.engine.cpu.scalar import (
    ALL,
    as_f32,
    as_f64,
    as_i64,
    compiled,
    exp,
    load,
    take,
)

BLOCK = 64
LOWEST = np.float32(-3.4e38)


@compiled
def _most(row: Any, blocks: Any) -> Any:
    """The largest number of each block of the row into `blocks`; returns the largest of all."""
    most = LOWEST
    for block in range(blocks.size):
        own = row[block * BLOCK : min((block + 1) * BLOCK, row.size)]
        largest = LOWEST
        for at in range(own.size):
            largest = max(largest, load(own[at]))
        blocks[block] = largest
        most = max(most, largest)
    return most


@compiled
def _find(row: Any, blocks: Any, most: Any) -> int:
    """The first index that holds `most`."""
    block = 0
    while block < blocks.size - 1 and blocks[block] != most:
        block += 1
    at = block * BLOCK
    while at < row.size - 1 and load(row[at]) != most:
        at += 1
    return at


@compiled
def _draw(row: Any, blocks: Any, most: Any, cold: Any, share: Any) -> int:
    """The first index at which the cumulative probability passes `share`; `cold`: 1 / temperature."""
    total = np.float64(0)
    for block in range(blocks.size):
        own = row[block * BLOCK : min((block + 1) * BLOCK, row.size)]
        mass = np.float32(0)
        for at in range(own.size):
            mass += exp((load(own[at]) - most) * cold)
        blocks[block] = mass
        total += mass
    goal, passed, block = share * total, np.float64(0), 0
    while block < blocks.size - 1 and passed + blocks[block] <= goal:
        passed += blocks[block]
        block += 1
    at, last = block * BLOCK, min((block + 1) * BLOCK, row.size) - 1
    passed += exp((load(row[at]) - most) * cold)
    while at < last and passed <= goal:
        at += 1
        passed += exp((load(row[at]) - most) * cold)
    return at


@compiled
def _choose(pointer: Any, logits: Any) -> None:
    """Arguments: 1 logits `[rows, vocabulary]`, 2 chosen, 3 rows, 4 vocabulary, 5 inverse temperatures (0: the
    likeliest), 6 uniform numbers.
    """
    a = carray(pointer, 7)
    rows, vocabulary = a[3], a[4]
    chosen, colds, shares = carray(as_i64(a[2]), rows), carray(as_f32(a[5]), rows), carray(as_f64(a[6]), rows)
    blocks = np.empty((vocabulary + BLOCK - 1) // BLOCK, dtype=np.float32)
    while True:
        row = take(pointer, 1)
        if row >= rows:
            return
        own = logits[row * vocabulary : (row + 1) * vocabulary]
        most = _most(own, blocks)
        if colds[row] > 0:
            chosen[row] = _draw(own, blocks, most, colds[row], shares[row])
        else:
            chosen[row] = _find(own, blocks, most)


def _choose_fp32(pointer: Any) -> None:
    _choose(pointer, carray(as_f32(carray(pointer, 2)[1]), ALL))


CHOOSE = Kernel(_choose_fp32)


def choose(logits: Tensor, inverse_temperatures: Tensor, shares: Tensor) -> Tensor:
    """logits `[rows, vocabulary]`; fp32 `[rows]`; shares, fp64 `[rows]` in [0, 1) → token ids `[rows]`."""
    logits = logits.float().contiguous()
    rows, vocabulary = logits.shape
    chosen = torch.empty(rows, dtype=torch.int64)
    CHOOSE(
        logits.data_ptr(),
        chosen.data_ptr(),
        rows,
        vocabulary,
        inverse_temperatures.data_ptr(),
        shares.data_ptr(),
    )
    return chosen
