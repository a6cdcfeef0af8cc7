"""The base's products: packed weights, any number of rows.

Weights are panels of PANEL outputs, `[panels, in / PACK, PANEL, PACK]`, where PACK numbers fill a 32-bit word. While a
panel is multiplied, the one that this thread takes next is asked from memory, spread over the passes. Every row is
added up in the same order, however many share the call: a token does not depend on its company. What adapters change is
added to the same sums before they are rounded (see `low_rank.py`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from workers.generation.engine import cpu
from workers.generation.engine.cpu import amx
from workers.generation.engine.cpu.finish import finish, finish_whole
from workers.generation.engine.cpu.low_rank import ENTRY, Changes, reduce
from workers.generation.engine.cpu.openmp import Kernel
from workers.generation.engine.cpu.scalar import (
    ALL,
    as_f32,
    as_i64,
    as_u16,
    compiled,
    nothing,
    pack_of,
    take,
)
from workers.generation.engine.cpu.tile import MOST, MULTIPLY, PANEL
from workers.generation.engine.kernel_calls import NOW, Argument, Caller

STEP = 4 * PANEL  # bytes of a panel per word of the rows
ROWS = 96  # of one task: with them in the second-level cache, a panel is read from there
AHEAD = 16 * STEP
HALF = STEP // 2
_times, _times_half = MULTIPLY[4], MULTIPLY[2]


def pack(weight: Tensor, place: Callable[[Tensor], Tensor] = Tensor.contiguous) -> Tensor:
    """`[out, in]` → panels in memory that `place` gives, filled up with zeros to whole panels and steps."""
    outer, inner = weight.shape
    missing = (0, -inner % step_of(weight), 0, -outer % PANEL)
    return place(into_panels(torch.nn.functional.pad(weight, missing) if any(missing) else weight))


def step_of(weight: Tensor) -> int:
    """Numbers of a row that are multiplied at a time, at least."""
    return amx.STEP * 2 if amx.AVAILABLE and weight.dtype == torch.bfloat16 else 1


def into_panels(weight: Tensor) -> Tensor:
    """`[panels · PANEL, in]` → `[panels, in / PACK, PANEL, PACK]`."""
    words = 4 // weight.itemsize
    return weight.view(-1, PANEL, weight.shape[1] // words, words).transpose(1, 2)


def multiply(
    x: Tensor,
    panels: Tensor,
    outer: int,
    bias: Tensor | None = None,
    onto: Tensor | None = None,
    changes: Changes | None = None,
    *,
    low: Tensor | None = None,
    wide: bool = False,
    on: Caller = NOW,
) -> Tensor:
    """x `[1, rows, in]` · (weight + the row's change)ᵀ + bias + onto → `[1, rows, outer]`, in fp32 if `wide`.

    `low`: what `reduce` makes of x and the changes, where that is known already.
    Raises ValueError for what the kernel could not read by address.
    """
    batch, rows, inner = x.shape
    result = on.empty(x, outer, torch.float32 if wide else x.dtype)
    room = panels.shape[1] * panels.shape[3]
    fits = batch == 1 and x.is_contiguous() and x.dtype == panels.dtype and inner + -inner % step_of(x) == room
    if not fits or not can_be_added(onto, result):
        raise ValueError("a product's input is not of its form")
    if rows:
        if low is None and changes is not None:
            low = reduce(x, changes, on)
        on.call(
            (WIDE if wide else KERNELS)[cpu.KINDS[x.dtype]],
            x.data_ptr(),
            panels.data_ptr(),
            result.data_ptr(),
            inner * x.itemsize // 4,
            outer,
            on.varying("rows", rows),
            torch.get_num_threads(),
            0 if bias is None else bias.data_ptr(),
            0 if onto is None else onto.data_ptr(),
            *change_arguments(low, changes),
        )
    return result


def can_be_added(onto: Tensor | None, result: Tensor) -> bool:
    """By address, number by number."""
    return onto is None or (onto.dtype == result.dtype and onto.shape == result.shape and onto.is_contiguous())


def change_arguments(low: Tensor | None, changes: Changes | None) -> list[Argument]:
    """What `add_changes` reads from 10 on."""
    return [0] * 7 if low is None or changes is None else [low.data_ptr(), *changes.arguments()]


@compiled
def rows_of_task(rows: Any, panels: Any, threads: Any, most: Any) -> Any:
    """So many that each thread has two tasks at least, or the `most` of a pass."""
    shared = rows * panels // (2 * threads)
    return max(1, min(rows, ROWS, max(most, shared // most * most)))


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
        following = owners[first + row] if row < count else owner
        for part in range(parts if owner >= 0 else 0):
            place = owner * a[13] + a[14] + part * ENTRY
            inside, width = panel - tables[place + 3], tables[place + 4]
            if tables[place + 2] > 0 and 0 <= inside < width:
                low = a[10] + ((first + begin) * parts + part) * rank * size
                words, next_place = tables[place + 2] // pack, max(following, 0) * a[13] + a[14] + part * ENTRY
                offset = inside * words * STEP + byte
                change, ahead = tables[place + 1] + offset, tables[next_place + 1] + offset
                into = total + begin * STEP + byte
                times(like, half, row - begin, low, parts * rank * size, change, words, into, 1, ahead, STEP)


def product(most: int, step: int, begin_passes: Any, one_pass: Any, end_passes: Any) -> Any:
    """The product whose passes take at most so many rows, and words of a row in steps of so many.

    `held`: the address of the rows that `spare` has a copy of, filled up to what a pass needs.
    """

    @compiled
    def run(pointer: Any, x: Any, out: Any) -> None:
        """Arguments: 1 x, 2 panels, 3 out, 4 words of a row, 5 outputs, 6 rows, 7 threads, 8 bias, 9 onto; 10 low (0:
        no adapters), 11 owners, 12 tables, 13 their stride, 14 where this product's begin, 15 parts, 16 the highest
        rank: see `low_rank.py`.
        """
        a = carray(pointer, 17)
        own_words, outer, rows = a[4], a[5], a[6]
        words = (own_words + step - 1) // step * step
        panels = (outer + PANEL - 1) // PANEL
        per_task = rows_of_task(rows, panels, a[7], most)
        pieces = (rows + per_task - 1) // per_task
        total = np.empty(most * PANEL, dtype=np.float32)
        spare = np.empty(most * words if step > 1 else 0, dtype=np.uint32)
        address, held = total.ctypes.data, 0
        begin_passes()
        number, piece, byte, half = cut(take(pointer, 1), panels, pieces, a[7])
        while number >= 0:
            following = cut(take(pointer, 1), panels, pieces, a[7])
            begin, column = piece * per_task, number * PANEL + byte // 4
            end, width = min(begin + per_task, rows), min(PANEL // 2 if half else PANEL, max(outer - column, 0))
            panel, later = a[2] + number * words * STEP + byte, a[2] + max(following[0], 0) * words * STEP
            passes = (end - begin + most - 1) // most
            for at in range(passes):
                first = begin + at * most
                count = min(most, end - first)
                ahead, stride = later + words // passes * at * STEP, STEP // passes
                if passes == 1:
                    ahead, stride = panel + AHEAD, STEP
                source = a[1] + first * own_words * 4
                copy, to = spare.ctypes.data, address + byte
                held = one_pass(x, half, count, source, own_words, panel, words, to, copy, held, ahead, stride)
                if a[10] != 0:
                    add_changes(x, a, first, count, number, half, byte, address)
                for r in range(count):
                    to, sums = (first + r) * outer + column, address + r * STEP + byte
                    if outer % PANEL == 0 and finish_whole(x, out, a, half, sums, to, column):
                        continue
                    own = total[r * PANEL + byte // 4 : r * PANEL + byte // 4 + width]
                    finish(x, a, out, own, to, column)
            number, piece, byte, half = following
        end_passes()

    return run


@compiled
def _plain_pass(  # type: ignore[no-untyped-def]
    like, half, rows, row, own_words, panel, words, out, spare, held, ahead, ahead_stride
):
    times(like, half, rows, row, 4 * own_words, panel, words, out, 0, ahead, ahead_stride)
    return held


@compiled
def _pass_of_tiles(  # type: ignore[no-untyped-def]
    like, half, rows, row, own_words, panel, words, out, spare, held, ahead, ahead_stride
):
    if rows % amx.TILE or words != own_words:
        if row != held:
            amx.fill(rows, row, own_words, spare, words)
        row, held = spare, row
    amx.times(half, rows, row, 4 * words, panel, words, out, ahead, ahead_stride)
    return held


_multiply = product(MOST, 1, nothing, _plain_pass, nothing)
_multiply_tiles = _multiply
if amx.AVAILABLE:
    _multiply_tiles = product(amx.ROWS, amx.STEP, amx.configure, _pass_of_tiles, amx.release)


def _multiply_bf16(pointer: Any) -> None:
    a = carray(pointer, 4)
    _multiply_tiles(pointer, carray(as_u16(a[1]), ALL), carray(as_u16(a[3]), ALL))


def _multiply_wide(pointer: Any) -> None:
    a = carray(pointer, 4)
    _multiply_tiles(pointer, carray(as_u16(a[1]), ALL), carray(as_f32(a[3]), ALL))


def _multiply_fp32(pointer: Any) -> None:
    a = carray(pointer, 4)
    _multiply(pointer, carray(as_f32(a[1]), ALL), carray(as_f32(a[3]), ALL))


KERNELS = {"bf16": Kernel(_multiply_bf16), "fp32": Kernel(_multiply_fp32)}
WIDE = {"bf16": Kernel(_multiply_wide), "fp32": KERNELS["fp32"]}
