"""The base's products in vector registers: a few rows at a time, times panels of PANEL outputs.

Weights are `[panels, in / PACK, PANEL, PACK]`, where PACK numbers fill a 32-bit word. While a panel is multiplied, the
one as many panels behind it as there are threads is asked from memory, spread over the passes: of two threads this one
most likely takes it next; of many, a core beside it. At a product's end those are the next product's, for the engine's
weights lie in the order in which they serve.
"""

from typing import Any

import numpy as np
from numba import carray
from torch import Tensor

from workers.generation.engine.cpu.finish import finish
from workers.generation.engine.cpu.low_rank import ENTRY
from workers.generation.engine.cpu.scalar import ALL, as_i64, compiled, pack_of, take
from workers.generation.engine.cpu.tile import MOST, MULTIPLY, PANEL

STEP = 4 * PANEL  # bytes of a panel per word of the rows
ROWS = 96  # of one task: with them in the second-level cache, a panel is read from there
HALF = STEP // 2
_times, _times_half = MULTIPLY[4], MULTIPLY[2]


def into_panels(weight: Tensor) -> Tensor:
    """`[panels · PANEL, in]` → `[panels, in / PACK, PANEL, PACK]`."""
    words = 4 // weight.itemsize
    return weight.view(-1, PANEL, weight.shape[1] // words, words).transpose(1, 2)


@compiled
def rows_of_task(rows: Any, panels: Any, threads: Any, least: Any, most: Any) -> Any:
    """So many, in whole passes of the `least`, that each thread has two panels of them; no more than `most`."""
    shared = rows * panels // (2 * threads)
    return max(1, min(rows, most, max(least, shared // least * least)))


@compiled
def times(  # type: ignore[no-untyped-def]
    like, half, rows, row, row_stride, panel, words, out, add, ahead, ahead_stride
):
    """Rows times a panel, or half of one, onto what is in `out` or not."""
    if half:
        _times_half(like, rows, row, row_stride, panel, STEP, words, out, STEP, add, ahead, ahead_stride)
    else:
        _times(like, rows, row, row_stride, panel, STEP, words, out, STEP, add, ahead, ahead_stride)


@compiled
def cut(task: Any, panels: Any, pieces: Any, threads: Any) -> Any:
    """Panel, piece of the rows, first byte in a panel's lines, whether only half a panel; panel −1: no such task.

    A row's panels are shared out one by one, but the last few that do not go round in halves.
    """
    whole = panels - panels % threads if pieces == 1 else panels
    if task < whole * pieces:
        return task % panels, task // panels, 0, False
    panel, byte = whole + (task - whole) // 2, (task - whole) % 2 * HALF
    return (panel if pieces == 1 and panel < panels else -1), 0, byte, True


@compiled
def add_changes(like: Any, a: Any, first: Any, count: Any, panel: Any, half: Any, byte: Any, total: Any) -> None:
    """Of `count` rows from `first` on, in one panel or half of one; neighbours of one adapter together."""
    owners, tables, parts, rank = carray(as_i64(a[11]), a[6]), carray(as_i64(a[12]), ALL), a[15], a[16]
    pack, row = pack_of(like), 0
    size = 4 // pack
    while row < count:
        owner, begin = owners[first + row], row
        while row < count and owners[first + row] == owner:
            row += 1
        for part in range(parts if owner >= 0 else 0):
            place = owner * a[13] + a[14] + part * ENTRY
            inside, width = panel - tables[place + 3], tables[place + 4]
            if tables[place + 2] > 0 and 0 <= inside < width:
                low = a[10] + ((first + begin) * parts + part) * rank * size
                words = tables[place + 2] // pack
                change = tables[place + 1] + inside * words * STEP + byte
                # As of the base's panels: the one that this thread takes next, for an adapter's lie side by side.
                ahead = change + a[7] * words * STEP
                into = total + begin * STEP + byte
                times(like, half, row - begin, low, parts * rank * size, change, words, into, 1, ahead, STEP)


@compiled
def multiply_in_registers(pointer: Any, x: Any, out: Any) -> None:
    """Arguments: 1 x, 2 panels, 3 out, 4 words of a row, 5 outputs, 6 rows, 7 threads, 8 bias, 9 onto; 10 low (0: no
    adapters), 11 owners, 12 tables, 13 their stride, 14 where this product's begin, 15 parts, 16 the highest rank: see
    `low_rank.py`.
    """
    a = carray(pointer, 17)
    words, outer, rows = a[4], a[5], a[6]
    panels = (outer + PANEL - 1) // PANEL
    per_task = rows_of_task(rows, panels, a[7], MOST, ROWS)
    pieces = (rows + per_task - 1) // per_task
    total = np.empty(MOST * PANEL, dtype=np.float32)
    number, piece, byte, half = cut(take(pointer, 1), panels, pieces, a[7])
    while number >= 0:
        begin, column = piece * per_task, number * PANEL + byte // 4
        end, width = min(begin + per_task, rows), min(PANEL // 2 if half else PANEL, max(outer - column, 0))
        panel = a[2] + number * words * STEP + byte
        later = panel + a[7] * words * STEP
        passes = (end - begin + MOST - 1) // MOST
        for at in range(passes):
            first, address = begin + at * MOST, total.ctypes.data
            count = min(MOST, end - first)
            ahead, stride = later + words // passes * at * STEP, STEP // passes
            times(x, half, count, a[1] + first * words * 4, words * 4, panel, words, address + byte, 0, ahead, stride)
            if a[10] != 0:
                add_changes(x, a, first, count, number, half, byte, address)
            finish(x, out, a, count, width, address + byte, first, column)
        number, piece, byte, half = cut(take(pointer, 1), panels, pieces, a[7])
