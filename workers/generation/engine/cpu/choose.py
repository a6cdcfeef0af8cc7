"""A token per row of logits: the likeliest, or a draw from the softmax by inverse CDF with a given uniform number."""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic
from torch import Tensor

from workers.generation.engine.cpu.openmp import Kernel
from workers.generation.engine.cpu.scalar import (
    ALL,
    as_f32,
    as_f64,
    as_i64,
    compiled,
    exp,
    take,
)
from workers.generation.engine.cpu.vectors import BYTES, FLOATS, LANES, LINE, LONG, at_offset

BLOCK = 64
LOWEST = np.float32(-3.4e38)


@intrinsic
def _largest(_: Any, address: Any) -> Any:
    """Of BLOCK fp32 numbers; numba's own loop waits for each comparison."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], BYTES)
        places = [at_offset(builder, place, LONG(LINE * v), FLOATS) for v in range(BLOCK // LANES)]
        lines = [builder.load(each, align=4) for each in places]
        while len(lines) > 1:
            pairs = zip(lines[::2], lines[1::2], strict=True)
            lines = [builder.select(builder.fcmp_ordered(">", one, other), one, other) for one, other in pairs]
        most = ir.FunctionType(ir.FloatType(), [FLOATS])
        return builder.call(get_or_insert_function(builder.module, most, "llvm.vector.reduce.fmax.v16f32"), lines)

    return types.float32(types.int64), codegen


@compiled
def _most(row: Any, blocks: Any) -> Any:
    """The largest number of each block of the row into `blocks`; returns the largest of all."""
    most = LOWEST
    for block in range(blocks.size):
        begin = block * BLOCK
        if begin + BLOCK <= row.size:
            largest = _largest(row[begin:].ctypes.data)
        else:
            largest = LOWEST
            for at in range(begin, row.size):
                largest = max(largest, row[at])
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
    while at < row.size - 1 and row[at] != most:
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
            mass += exp((own[at] - most) * cold)
        blocks[block] = mass
        total += mass
    goal, passed, block = share * total, np.float64(0), 0
    while block < blocks.size - 1 and passed + blocks[block] <= goal:
        passed += blocks[block]
        block += 1
    at, last = block * BLOCK, min((block + 1) * BLOCK, row.size) - 1
    passed += exp((row[at] - most) * cold)
    while at < last and passed <= goal:
        at += 1
        passed += exp((row[at] - most) * cold)
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


def choose(logits: Tensor, inverse_temperatures: np.ndarray, shares: np.ndarray) -> list[int]:
    """logits `[rows, vocabulary]`, fp32 and contiguous; fp32 `[rows]`; shares, fp64 `[rows]` in [0, 1) → token ids.

    Raises ValueError for what the kernel could not read by address.
    """
    rows, vocabulary = logits.shape
    fits = logits.dtype == torch.float32 and logits.is_contiguous()
    if not fits or not len(inverse_temperatures) == len(shares) == rows:
        raise ValueError("what tokens are chosen from is not of the kernel's form")
    chosen = np.empty(rows, dtype=np.int64)
    colds, parts = (np.ascontiguousarray(inverse_temperatures, np.float32), np.ascontiguousarray(shares, np.float64))
    CHOOSE(logits.data_ptr(), chosen.ctypes.data, rows, vocabulary, colds.ctypes.data, parts.ctypes.data)
    told: list[int] = chosen.tolist()
    return told
