"""Low-rank updates of a few tokens each."""

from typing import Any

import numpy as np
from numba import carray

from workers.generation.engine.cpu.openmp import Kernel
from workers.generation.engine.cpu.scalar import (
    ALL,
    as_f32,
    as_i64,
    as_u16,
    body,
    compiled,
    load,
    store,
    take,
    typed,
)


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


LOW_RANK = {"bf16": Kernel(_low_rank_bf16.address), "fp32": Kernel(_low_rank_fp32.address)}
