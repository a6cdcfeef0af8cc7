"""The first half of low-rank updates, x · Aᵀ, of many adapters in one call; `registers.py` adds the second, · B.

A is kept as `[rank, in]`, rows filled up with zeros to whole vectors and ranks to a multiple of RANKS; B as panels of
the product that it changes, `[panels, rank / PACK, PANEL, PACK]`, zeros where a panel is not its own (PACK numbers fill
a 32-bit word).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from workers.generation.engine import cpu
from workers.generation.engine.cpu.openmp import Kernel
from workers.generation.engine.cpu.scalar import (
    ALL,
    as_f32,
    as_i64,
    as_u16,
    compiled,
    number,
    pack_of,
    store,
    take,
    typed,
)
from workers.generation.engine.cpu.tile import DOT, PANEL, RANKS
from workers.generation.engine.cpu.vectors import LANES
from workers.generation.engine.kernel_calls import Argument, Caller

ENTRY = 5  # integers per part in an adapter's table
ROWS = 4  # of one task


@dataclass(frozen=True)
class Changes:
    """What a step's adapters change in one product. `owners`: `[rows]`, place of the row's adapter in `tables` or -1.

    `adapters`: every one's entries, `stride` integers before the next one's; those of this product begin at `begin`.
    `rank`: the highest; `room`: what memory is given for. The first four as a kernel's call takes them.
    """

    owners: Argument
    adapters: Argument
    stride: Argument
    rank: Argument
    begin: int
    parts: int
    room: int

    def arguments(self) -> list[Argument]:
        """As a kernel's call takes them."""
        return [self.owners, self.adapters, self.stride, self.begin, self.parts, self.rank]


def pack_down(a: Tensor) -> Tensor:
    """`[rank, in]` → as the kernel reads it."""
    return torch.nn.functional.pad(a, (0, -a.shape[1] % (LANES * 4 // a.itemsize), 0, -a.shape[0] % RANKS)).contiguous()


def pack_up(b: Tensor, begin: int) -> Tensor:
    """`[rank, width]`, for the product's columns from `begin` on → its panels."""
    words, before = 4 // b.itemsize, begin % PANEL
    padded = torch.nn.functional.pad(b, (before, -(before + b.shape[1]) % PANEL, 0, -b.shape[0] % RANKS))
    return padded.view(-1, words, padded.shape[1] // PANEL, PANEL).permute(2, 0, 3, 1).contiguous()


def entry(a: Tensor, b: Tensor, begin: int) -> list[int]:
    """Packed factors of a part as the kernels find them in the table: addresses, rank, first panel, panels."""
    return [a.data_ptr(), b.data_ptr(), a.shape[0], begin // PANEL, b.shape[0]]


def reduce(x: Tensor, changes: Changes, on: Caller) -> Tensor:
    """x `[1, rows, in]` → `[rows, parts, rank]`; written only where a row has an adapter, as far as its rank goes."""
    low = on.empty(x, changes.parts * changes.room)
    on.call(
        KERNELS[cpu.KINDS[x.dtype]],
        x.data_ptr(),
        low.data_ptr(),
        x.shape[2],
        on.varying("rows", x.shape[1]),
        *changes.arguments(),
    )
    return low


@compiled
def _reduce(pointer: Any, x: Any, low: Any) -> None:
    """Arguments: 1 x, 2 low, 3 in, 4 rows, 5 owners, 6 tables, 7 integers from one adapter's to the next, 8 where this
    product's begin, 9 parts, 10 the highest rank. Tables: see `entry`; rank 0: no change.
    """
    a = carray(pointer, 11)
    inner, rows, parts, most = a[3], a[4], a[9], a[10]
    owners, tables, pack = carray(as_i64(a[5]), rows), carray(as_i64(a[6]), ALL), pack_of(x)
    words = (inner + LANES * pack - 1) // (LANES * pack) * LANES
    padded, sums = np.zeros(words, dtype=np.uint32), np.zeros(RANKS, dtype=np.float32)
    own = typed(x, padded.ctypes.data)
    while True:
        begin = take(pointer, ROWS)
        if begin >= rows:
            return
        for row in range(begin, min(begin + ROWS, rows)):
            if owners[row] < 0:
                continue
            source = x[row * inner : (row + 1) * inner]
            for k in range(inner):
                own[k] = source[k]
            for part in range(parts):
                place = owners[row] * a[7] + a[8] + part * ENTRY
                for rank in range(0, tables[place + 2], RANKS):
                    lines = tables[place] + rank * words * 4
                    DOT(x, padded.ctypes.data, lines, 4 * words, words, sums.ctypes.data)
                    for i in range(RANKS):
                        store(low, (row * parts + part) * most + rank + i, sums[i])


def _reduce_bf16(pointer: Any) -> None:
    a = carray(pointer, 3)
    _reduce(pointer, carray(as_u16(a[1]), ALL), carray(as_u16(a[2]), ALL))


def _reduce_fp32(pointer: Any) -> None:
    a = carray(pointer, 3)
    _reduce(pointer, carray(as_f32(a[1]), ALL), carray(as_f32(a[2]), ALL))


KERNELS = {"bf16": Kernel(_reduce_bf16), "fp32": Kernel(_reduce_fp32)}


FACTORS = 11  # integers per linear for `PACK`


@compiled
def _place(up: Any, words: Any, rank: Any, output: Any, value: Any) -> None:
    """A number of B, where `pack_up` has it."""
    store(up, ((output // PANEL * words + rank // 2) * PANEL + output % PANEL) * 2 + rank % 2, value)


def _pack(pointer: Any) -> None:
    """The factors of many linears as `pack_down` and `pack_up` would, for x · A · B and for the way back, y · Bᵀ · Aᵀ;
    B times `scale`. Arguments: 1 table, 2 linears, 3 scale.

    Of each linear in the table: a `[rank, in]` and b `[out, rank]`, fp32; rank, in, out; then where they go, bf16, all
    zero before: a and b, for the way back b and a; numbers in a line of packed a, and of packed b on the way back.
    """
    a = carray(pointer, 4)
    table, scale = carray(as_i64(a[1]), a[2] * FACTORS), number(a[3])
    while True:
        at = take(pointer, 1)
        if at >= a[2]:
            return
        own = table[at * FACTORS : (at + 1) * FACTORS]
        rank, inner, outer = own[2], own[3], own[4]
        first, second = carray(as_f32(own[0]), rank * inner), carray(as_f32(own[1]), outer * rank)
        down, up, back_down, back_up = (
            carray(as_u16(own[5]), ALL),
            carray(as_u16(own[6]), ALL),
            carray(as_u16(own[7]), ALL),
            carray(as_u16(own[8]), ALL),
        )
        words = (rank + RANKS - 1) // RANKS * RANKS // 2
        for r in range(rank):
            for k in range(inner):
                value = first[r * inner + k]
                store(down, r * own[9] + k, value)
                _place(back_up, words, r, k, value)
        for o in range(outer):
            for r in range(rank):
                value = second[o * rank + r] * scale
                _place(up, words, r, o, value)
                store(back_down, r * own[10] + o, value)


PACK = Kernel(_pack)
