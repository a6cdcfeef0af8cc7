"""The base's products: packed weights, any number of rows.

Weights are panels of PANEL outputs, `[panels, in / PACK, PANEL, PACK]`, where PACK numbers fill a 32-bit word. While a
panel is multiplied, the one that this thread takes next is asked from memory, spread over the passes. Every row is
added up in the same order, however many share the call: a token does not depend on its company. What adapters change is
added to the same sums before they are rounded (see `low_rank.py`).
"""

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from workers.generation.engine import cpu
from workers.generation.engine.cpu.low_rank import ENTRY, Changes, reduce
from workers.generation.engine.cpu.openmp import Kernel
from workers.generation.engine.cpu.scalar import (
    ALL,
    as_f32,
    as_i64,
    as_u16,
    compiled,
    load,
    pack_of,
    store,
    take,
    typed,
)
from workers.generation.engine.cpu.tile import MOST, MULTIPLY, PANEL

STEP = 4 * PANEL  # bytes of a panel per word of the rows
ROWS = 96  # of one task: with them in the second-level cache, a panel is read from there
AHEAD = 16 * STEP
_times = MULTIPLY[4]


def pack(weight: Tensor) -> Tensor:
    """`[out, in]` → panels; the last one is filled up with zeros."""
    return into_panels(torch.nn.functional.pad(weight, (0, 0, 0, -weight.shape[0] % PANEL)))


def into_panels(weight: Tensor) -> Tensor:
    """`[panels · PANEL, in]` → `[panels, in / PACK, PANEL, PACK]`."""
    words = 4 // weight.itemsize
    return weight.view(-1, PANEL, weight.shape[1] // words, words).transpose(1, 2).contiguous()


def multiply(
    x: Tensor,
    panels: Tensor,
    outer: int,
    bias: Tensor | None = None,
    onto: Tensor | None = None,
    changes: Changes | None = None,
    *,
    wide: bool = False,
) -> Tensor:
    """x `[1, rows, in]` · (weight + the row's change)ᵀ + bias + onto → `[1, rows, outer]`, in fp32 if `wide`.

    Raises ValueError for what the kernel could not read by address.
    """
    _, rows, inner = x.shape
    result = x.new_empty(1, rows, outer, dtype=torch.float32 if wide else x.dtype)
    fits = x.is_contiguous() and x.dtype == panels.dtype and inner == panels.shape[1] * panels.shape[3]
    if not fits or (onto is not None and (onto.dtype != result.dtype or onto.shape != result.shape)):
        raise ValueError("a product's input is not of its form")
    if rows:
        low = None if changes is None else reduce(x, changes)
        adapters = (0, 0, 0, 0, 0)
        if changes is not None and low is not None:
            adapters = low.data_ptr(), changes.owners.data_ptr(), changes.tables, changes.stride, changes.parts
        (WIDE if wide else KERNELS)[cpu.KINDS[x.dtype]](
            x.data_ptr(),
            panels.data_ptr(),
            result.data_ptr(),
            inner * x.itemsize // 4,
            outer,
            rows,
            rows_of_task(rows, panels.shape[0]),
            0 if bias is None else bias.data_ptr(),
            0 if onto is None else onto.contiguous().data_ptr(),
            *adapters,
            0 if changes is None else changes.rank,
        )
    return result


def rows_of_task(rows: int, panels: int) -> int:
    """So many that each thread has two tasks at least, or a tile's."""
    shared = rows * panels // (2 * torch.get_num_threads())
    return min(rows, ROWS, max(MOST, shared // MOST * MOST))


@compiled
def add_changes(like: Any, a: Any, first: Any, count: Any, panel: Any, total: Any) -> None:
    """Of `count` rows from `first` on, in one panel; neighbours of one adapter together."""
    owners, tables, parts, rank = carray(as_i64(a[11]), a[6]), carray(as_i64(a[12]), ALL), a[14], a[15]
    pack, row = pack_of(like), 0
    size = 4 // pack
    while row < count:
        owner, begin = owners[first + row], row
        while row < count and owners[first + row] == owner:
            row += 1
        for part in range(parts if owner >= 0 else 0):
            place = owner * a[13] + part * ENTRY
            inside, width = panel - tables[place + 3], tables[place + 4]
            if tables[place + 2] > 0 and 0 <= inside < width:
                low = a[10] + ((first + begin) * parts + part) * rank * size
                change, words = tables[place + 1] + inside * STEP, tables[place + 2] // pack
                into, stride = total + begin * STEP, width * STEP
                _times(like, row - begin, low, parts * rank * size, change, stride, words, into, STEP, 1, change, 0)


@compiled
def finish(x: Any, a: Any, out: Any, own: Any, place: Any, column: Any) -> None:
    """A row's sums in one panel, plus bias and onto, into `out` at `place`; `a`: see `_multiply`."""
    width = len(own)
    target = out[place : place + width]
    if a[8] != 0:
        added = typed(x, a[8])[column : column + width]
        for j in range(width):
            own[j] += load(added[j])
    if a[9] != 0:
        onto = typed(out, a[9])[place : place + width]
        for j in range(width):
            own[j] += load(onto[j])
    for j in range(width):
        store(target, j, own[j])


@compiled
def _multiply(pointer: Any, x: Any, out: Any) -> None:
    """Arguments: 1 x, 2 panels, 3 out, 4 words of a row, 5 outputs, 6 rows, 7 rows of a task, 8 bias, 9 onto;
    10 low (0: no adapters), 11 owners, 12 tables, 13 their stride, 14 parts, 15 the highest rank: see `low_rank.py`.
    """
    a = carray(pointer, 16)
    words, outer, rows, per_task = a[4], a[5], a[6], a[7]
    panels, pieces = (outer + PANEL - 1) // PANEL, (rows + per_task - 1) // per_task
    total = np.empty(MOST * PANEL, dtype=np.float32)
    address = total.ctypes.data
    following = take(pointer, 1)
    while following < panels * pieces:
        task, following = following, take(pointer, 1)
        column, begin = task % panels * PANEL, task // panels * per_task
        end, width = min(begin + per_task, rows), min(PANEL, outer - column)
        panel, later = a[2] + task % panels * words * STEP, a[2] + following % panels * words * STEP
        passes = (end - begin + MOST - 1) // MOST
        for at in range(passes):
            first = begin + at * MOST
            count = min(MOST, end - first)
            ahead, stride = later + words // passes * at * STEP, STEP // passes
            if passes == 1:
                ahead, stride = panel + AHEAD, STEP
            source = a[1] + first * words * 4
            _times(x, count, source, 4 * words, panel, STEP, words, address, STEP, 0, ahead, stride)
            if a[10] != 0:
                add_changes(x, a, first, count, task % panels, address)
            for r in range(count):
                finish(x, a, out, total[r * PANEL : r * PANEL + width], (first + r) * outer + column, column)


def _multiply_bf16(pointer: Any) -> None:
    a = carray(pointer, 4)
    _multiply(pointer, carray(as_u16(a[1]), ALL), carray(as_u16(a[3]), ALL))


def _multiply_wide(pointer: Any) -> None:
    a = carray(pointer, 4)
    _multiply(pointer, carray(as_u16(a[1]), ALL), carray(as_f32(a[3]), ALL))


def _multiply_fp32(pointer: Any) -> None:
    a = carray(pointer, 4)
    _multiply(pointer, carray(as_f32(a[1]), ALL), carray(as_f32(a[3]), ALL))


KERNELS = {"bf16": Kernel(_multiply_bf16), "fp32": Kernel(_multiply_fp32)}
WIDE = {"bf16": Kernel(_multiply_wide), "fp32": KERNELS["fp32"]}
