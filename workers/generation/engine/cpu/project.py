"""Products of single rows: one token through a packed weight matrix, and low-rank updates of a few tokens each.

oneDNN is built for many rows; for one it reaches less than half of the memory's bandwidth.
"""

from typing import Any

import numpy as np
from numba import carray

from workers.generation.engine.cpu.openmp import Kernel
from workers.generation.engine.cpu.scalar import (
    ALL,
    as_f32,
    as_i64,
    as_u16,
    as_u32,
    body,
    compiled,
    high,
    load,
    low,
    store,
    take,
    typed,
)

BLOCK = 64


@compiled
def _multiply(pointer: Any, x: Any, weight: Any, out: Any, stride: int) -> None:
    inner, outer = x.size, out.size
    total = np.empty(BLOCK, dtype=np.float32)
    while True:
        begin = take(pointer, BLOCK)
        if begin >= outer:
            return
        panel = weight[(begin // BLOCK) * stride : (begin // BLOCK) * stride + inner * BLOCK]
        for j in range(BLOCK):
            total[j] = np.float32(0)
        for k in range(0, inner, 4):
            x0, x1, x2, x3 = x[k], x[k + 1], x[k + 2], x[k + 3]
            rows = panel[k * BLOCK : (k + 4) * BLOCK]
            for j in range(BLOCK):
                w0, w1, w2, w3 = rows[j], rows[BLOCK + j], rows[2 * BLOCK + j], rows[3 * BLOCK + j]
                total[j] += (
                    (low(x0) * low(w0) + high(x0) * high(w0))
                    + (low(x1) * low(w1) + high(x1) * high(w1))
                    + (low(x2) * low(w2) + high(x2) * high(w2))
                    + (low(x3) * low(w3) + high(x3) * high(w3))
                )
        for j in range(min(BLOCK, outer - begin)):
            store(out, begin + j, total[j])


@body
def _one_row(pointer: Any) -> None:
    """x [in] · weightᵀ → [out], bf16. Weights as oneDNN packs them: `[out / 64][in / 2][64][2]`."""
    a = carray(pointer, 7)
    inner, outer, stride = a[4] // 2, a[5], a[6]
    x, weight, out = carray(as_u32(a[1]), inner), carray(as_u32(a[2]), ALL), carray(as_u16(a[3]), outer)
    _multiply(pointer, x, weight, out, stride)


@compiled
def _low_rank(pointer: Any, x: Any, out: Any) -> None:
    """Arguments: 1 x, 2 out, 3 rows, 4 in, 5 out's stride, 6 row numbers, 7 their adapters, 8 table, 9 its stride,
    10 parts. Table: per adapter and part: address of A `[rank, in]`, of B `[rank, width]`, rank, first column, width.
    """
    a = carray(pointer, 11)
    count, inner, stride, parts = a[3], a[4], a[5], a[10]
    rows, adapters = carray(as_i64(a[6]), count), carray(as_i64(a[7]), count)
    table = carray(as_i64(a[8]), ALL)
    change = np.empty(0, dtype=np.float32)
    while True:
        task = take(pointer, 1)
        if task >= count:
            return
        own = x[rows[task] * inner : (rows[task] + 1) * inner]
        for part in range(parts):
            entry = table[adapters[task] * a[9] + part * 5 : adapters[task] * a[9] + part * 5 + 5]
            rank, width = entry[2], entry[4]
            if rank == 0:
                continue
            if change.size < width:
                change = np.empty(width, dtype=np.float32)
            down, up = typed(x, entry[0]), typed(x, entry[1])
            for o in range(width):
                change[o] = np.float32(0)
            for r in range(rank):
                line = down[r * inner : (r + 1) * inner]
                value = np.float32(0)
                for k in range(inner):
                    value += load(own[k]) * load(line[k])
                line = up[r * width : (r + 1) * width]
                for o in range(width):
                    change[o] += value * load(line[o])
            to = out[rows[task] * stride + entry[3] : rows[task] * stride + entry[3] + width]
            for o in range(width):
                store(to, o, load(to[o]) + change[o])


@body
def _low_rank_bf16(pointer: Any) -> None:
    a = carray(pointer, 3)
    _low_rank(pointer, carray(as_u16(a[1]), ALL), carray(as_u16(a[2]), ALL))


@body
def _low_rank_fp32(pointer: Any) -> None:
    a = carray(pointer, 3)
    _low_rank(pointer, carray(as_f32(a[1]), ALL), carray(as_f32(a[2]), ALL))


ONE_ROW = Kernel(_one_row.address)
LOW_RANK = {"bf16": Kernel(_low_rank_bf16.address), "fp32": Kernel(_low_rank_fp32.address)}
