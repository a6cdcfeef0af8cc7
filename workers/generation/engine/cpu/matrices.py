"""The base's products where the processor multiplies whole matrices of bf16: see `amx.py`.

Weights are halves of panels, SIDE outputs each: `[halves, in / 32, SIDE / 16, 16, 16, 2]`, tile after tile in the order
in which they are read. All rows of a task pass by half a panel before the next half's turn comes: it stays in the
first-level cache, the rows, which are read again for each half, in the second-level one.
"""

from typing import Any

import numpy as np
from numba import carray
from torch import Tensor

from workers.generation.engine.cpu import amx
from workers.generation.engine.cpu.finish import STRIDE, finish
from workers.generation.engine.cpu.registers import add_changes, rows_of_task
from workers.generation.engine.cpu.scalar import compiled, take
from workers.generation.engine.cpu.tile import PANEL
from workers.generation.engine.cpu.vectors import LANES, LINE

SIDE = PANEL // 2
BYTES_OF_WORD = 4 * SIDE  # of half a panel
HELD = 1 << 20  # bytes of the rows of a task, at most
# Halves of a task: neighbours, for memory is read the faster the longer the stretch; of not too few tasks in all.
ROUNDS, LEAST = 8, 3


def into_tiles(weight: Tensor) -> Tensor:
    """`[halves · SIDE, in]`, in a multiple of 32, → `[halves, in / 32, SIDE / 16, 16, 16, 2]`."""
    tiles = weight.view(-1, SIDE // amx.TILE, amx.TILE, weight.shape[1] // (2 * amx.STEP), amx.STEP, 2)
    return tiles.permute(0, 3, 1, 4, 2, 5)


@compiled
def halves_of_task(halves: Any, threads: Any) -> Any:
    """So many that threads which are equally fast end as nearly together as can be."""
    best, most = halves, halves
    for rounds in range(1, max(1, min(ROUNDS, halves // (threads * LEAST))) + 1):
        each = (halves + threads * rounds - 1) // (threads * rounds)
        tasks = (halves + each - 1) // each
        longest = (tasks + threads - 1) // threads * each
        if longest <= most:
            best, most = each, longest
    return best


@compiled
def multiply_matrices(pointer: Any, x: Any, out: Any) -> None:
    """Arguments as in `registers.py`."""
    a = carray(pointer, 17)
    own_words, outer, rows = a[4], a[5], a[6]
    words = (own_words + amx.STEP - 1) // amx.STEP * amx.STEP
    halves, size = (outer + SIDE - 1) // SIDE, words * BYTES_OF_WORD
    per_task = rows_of_task(rows, halves, a[7], amx.ROWS, max(HELD // (4 * words) // amx.ROWS, 1) * amx.ROWS)
    each, stride = halves_of_task(halves, a[7]), out.itemsize * outer
    stretches = (halves + each - 1) // each
    total = np.empty(amx.ROWS * PANEL + LANES, dtype=np.float32)
    spare = np.empty(amx.ROWS * words + LANES, dtype=np.uint32)
    held = 0  # the address of the rows that `spare` has a copy of
    amx.configure()
    task = take(pointer, 1)
    while task < stretches * ((rows + per_task - 1) // per_task):
        begin, start = task // stretches * per_task, task % stretches * each
        for half in range(start, min(start + each, halves)):
            tiles, column = a[2] + half * size, half * SIDE
            for first in range(begin, min(begin + per_task, rows), amx.ROWS):
                # Asked for here: numba frees an array after its last mention, whatever keeps its address.
                address, copy = whole_lines(total.ctypes.data), whole_lines(spare.ctypes.data)
                count, sums = min(amx.ROWS, min(begin + per_task, rows) - first), address + column % PANEL * 4
                row, target = a[1] + first * own_words * 4, a[3] + first * stride + out.itemsize * column
                if count % amx.TILE or words != own_words:
                    if row != held:
                        amx.fill(count, row, own_words, copy, words)
                    row, held = copy, row
                amx.times(count, row, 4 * words, tiles, words, sums, STRIDE, first == begin, target, stride)
                if a[10] != 0:
                    add_changes(x, a, first, count, column // PANEL, True, column % PANEL * 4, address)
                finish(x, out, a, count, min(SIDE, outer - column), sums, first, column)
        task = take(pointer, 1)
    amx.release()


@compiled
def whole_lines(address: Any) -> Any:
    """The first line of the caches that begins at or behind it: tiles that cross lines take twice as long."""
    return (address + LINE - 1) // LINE * LINE
