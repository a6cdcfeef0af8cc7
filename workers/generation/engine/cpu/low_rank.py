"""Low-rank updates of a product, of many adapters in one call: out += (x · Aᵀ) · B.

A is kept as `[rank, in]`, rows filled up with zeros to whole vectors and ranks to a multiple of RANKS; B as one panel,
`[rank / PACK, width, PACK]`, width filled up to whole tiles (PACK numbers fill a 32-bit word). What a row gets does
not depend on the rows beside it.
"""

from typing import Any

import numpy as np
import torch
from numba import carray
from numba.core import types
from numba.extending import overload
from torch import Tensor

from workers.generation.engine.cpu.openmp import Kernel
from workers.generation.engine.cpu.scalar import ALL, as_f32, as_i64, as_u16, compiled, load, store, take, typed
from workers.generation.engine.cpu.tile import DOTS, LANES, MOST, MULTIPLY, RANKS

ENTRY = 6  # integers per part in an adapter's table
ROWS = 8 * MOST  # of one task
COLUMNS = 4 * LANES
_up_bf16, _up_fp32 = MULTIPLY[4, True], MULTIPLY[4, False]
_down_bf16, _down_fp32 = DOTS[True], DOTS[False]


def pack_down(a: Tensor) -> Tensor:
    """`[rank, in]` → as the kernel reads it."""
    return torch.nn.functional.pad(a, (0, -a.shape[1] % (LANES * 4 // a.itemsize), 0, -a.shape[0] % RANKS)).contiguous()


def pack_up(b: Tensor) -> Tensor:
    """`[rank, width]` → as the kernel reads it."""
    words = 4 // b.itemsize
    padded = torch.nn.functional.pad(b, (0, -b.shape[1] % COLUMNS, 0, -b.shape[0] % RANKS))
    return padded.view(-1, words, padded.shape[1]).transpose(1, 2).contiguous()


def entry(a: Tensor, b: Tensor, begin: int, width: int) -> list[int]:
    """Packed factors of a part as the kernel finds them in the table."""
    return [a.data_ptr(), b.data_ptr(), a.shape[0], begin, width, b.shape[1]]


def _down(like: Any, row: Any, lines: Any, words: Any, out: Any) -> None:
    """out[RANKS] = row · lines, `words` a multiple of LANES."""
    raise NotImplementedError


@overload(_down, inline="always")
def _down_of(like: Any, row: Any, lines: Any, words: Any, out: Any) -> Any:
    dots = _down_bf16 if like.dtype == types.uint16 else _down_fp32

    def run(like: Any, row: Any, lines: Any, words: Any, out: Any) -> None:
        dots(row, lines, 4 * words, words, out)

    return run


def _up(like: Any, rows: Any, low: Any, low_stride: Any, panel: Any, stride: Any, words: Any, out: Any) -> None:
    """out[rows, COLUMNS] = low · panel."""
    raise NotImplementedError


@overload(_up, inline="always")
def _up_of(like: Any, rows: Any, low: Any, low_stride: Any, panel: Any, stride: Any, words: Any, out: Any) -> Any:
    multiply = _up_bf16 if like.dtype == types.uint16 else _up_fp32

    def run(like: Any, rows: Any, low: Any, low_stride: Any, panel: Any, stride: Any, words: Any, out: Any) -> None:
        multiply(rows, low, low_stride, panel, stride, words, out, 4 * COLUMNS, 0, panel, 0)

    return run


@compiled
def _low_rank(pointer: Any, x: Any, out: Any) -> None:
    """Arguments: 1 x, 2 out, 3 in, 4 out's width, 5 pieces `[n, 3]`: first row, rows, adapter; 6 how many, 7 tables,
    8 integers from one adapter's to the next, 9 parts, 10 the highest rank. Tables: see `entry`; rank 0: no change.
    """
    a = carray(pointer, 11)
    inner, stride, count, parts = a[3], a[4], a[6], a[9]
    pieces, tables = carray(as_i64(a[5]), 3 * count), carray(as_i64(a[7]), ALL)
    pack = 4 // x.itemsize
    words = (inner + LANES * pack - 1) // (LANES * pack) * LANES
    row, low = np.zeros(words, dtype=np.uint32), np.zeros(MOST * a[10], dtype=np.uint32)
    sums, total = np.zeros(RANKS, dtype=np.float32), np.zeros(MOST * COLUMNS, dtype=np.float32)
    own, reduced = typed(x, row.ctypes.data), typed(x, low.ctypes.data)
    while True:
        task = take(pointer, 1)
        if task >= count * parts:
            return
        piece, part = pieces[task // parts * 3 : task // parts * 3 + 3], task % parts
        table = tables[piece[2] * a[8] + part * ENTRY : piece[2] * a[8] + (part + 1) * ENTRY]
        rank, begin, width, up_stride = table[2], table[3], table[4], table[5] * 4
        if rank == 0:
            continue
        for first in range(piece[0], piece[0] + piece[1], MOST):
            rows = min(MOST, piece[0] + piece[1] - first)
            for r in range(rows):
                source = x[(first + r) * inner : (first + r + 1) * inner]
                for k in range(inner):
                    own[k] = source[k]
                for c in range(0, rank, RANKS):
                    _down(x, row.ctypes.data, table[0] + c * words * 4, words, sums.ctypes.data)
                    for i in range(RANKS):
                        store(reduced, r * rank + c + i, sums[i])
            for column in range(0, width, COLUMNS):
                panel = table[1] + column * 4
                _up(
                    x,
                    rows,
                    low.ctypes.data,
                    rank * x.itemsize,
                    panel,
                    up_stride,
                    rank // pack,
                    total.ctypes.data,
                )
                some = min(COLUMNS, width - column)
                for r in range(rows):
                    to = out[(first + r) * stride + begin + column : (first + r) * stride + begin + column + some]
                    change = total[r * COLUMNS : r * COLUMNS + some]
                    for j in range(some):
                        store(to, j, load(to[j]) + change[j])


def _low_rank_bf16(pointer: Any) -> None:
    a = carray(pointer, 3)
    _low_rank(pointer, carray(as_u16(a[1]), ALL), carray(as_u16(a[2]), ALL))


def _low_rank_fp32(pointer: Any) -> None:
    a = carray(pointer, 3)
    _low_rank(pointer, carray(as_f32(a[1]), ALL), carray(as_f32(a[2]), ALL))


LOW_RANK = {"bf16": Kernel(_low_rank_bf16), "fp32": Kernel(_low_rank_fp32)}
