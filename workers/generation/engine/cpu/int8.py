"""The base's products with weights of 8 bits: half the bytes to read, and twice the arithmetic of bf16 in a step.

A weight is q · scale of its output, q in −127 … 127, kept as q + 128 in panels as in `registers.py`: sums are so much
too high (`excess`). A row is cut into groups of GROUP numbers, each with a scale of its own, so one outlier coarsens
its own group only. Sums of whole numbers are exact and groups are added in order: as with other weights, no row depends
on its company. What adapters change is made of the row as it was, in the model's own precision.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic
from torch import Tensor

from workers.generation.engine import cpu
from workers.generation.engine.cpu.finish import finish
from workers.generation.engine.cpu.low_rank import Changes, reduce
from workers.generation.engine.cpu.multiply import can_be_added, change_arguments
from workers.generation.engine.cpu.openmp import Kernel
from workers.generation.engine.cpu.registers import ROWS, STEP, add_changes, into_panels, rows_of_task
from workers.generation.engine.cpu.scalar import ALL, as_f32, as_u8, as_u16, compiled, load, take
from workers.generation.engine.cpu.tile import MOST, MULTIPLY, PANEL
from workers.generation.engine.cpu.vectors import BYTES, FLOATS, LANES, LINE, LONG, WORD, spread
from workers.generation.engine.cpu.vectors import WORDS as LINE_OF_WORDS
from workers.generation.engine.kernel_calls import NOW, Caller

GROUP = 64  # numbers of a row that share a scale
WORDS = GROUP // 4
STRIDE = GROUP + 4  # bytes: the scale, then the numbers
VECTORS = GROUP // LANES
TINY = 1e-30
QUANTISED_ROWS = 8  # of one task
_times = MULTIPLY[4]


@dataclass(frozen=True)
class Int8:
    """`panels`: `[panels, in / 4, PANEL, 4]` of uint8, in padded to whole groups; `scales`: fp32, one per output."""

    panels: Tensor
    scales: Tensor


def pack(weight: Tensor, place: Callable[[Tensor], Tensor] = Tensor.contiguous) -> Int8:
    """`[out, in]`, rounded to the nearest of 255 values of each output."""
    outer, inner = weight.shape
    scales = weight.abs().amax(1).float().clamp_min(TINY) / 127
    whole = (weight.float() / scales[:, None]).round_().add_(128).to(torch.uint8)
    padded = torch.nn.functional.pad(whole, (0, -inner % GROUP, 0, -outer % PANEL), value=128)
    return Int8(place(into_panels(padded)), torch.nn.functional.pad(scales, (0, -outer % PANEL)))


def multiply(
    x: Tensor,
    weight: Int8,
    outer: int,
    bias: Tensor | None = None,
    onto: Tensor | None = None,
    changes: Changes | None = None,
    *,
    wide: bool = False,
    on: Caller = NOW,
) -> Tensor:
    """As `multiply.py` has it."""
    _, rows, inner = x.shape
    result = on.empty(x, outer, torch.float32 if wide else x.dtype)
    groups = weight.panels.shape[1] // WORDS
    fits = len(x) == 1 and x.is_contiguous() and -(-inner // GROUP) == groups
    if not fits or not can_be_added(onto, result):
        raise ValueError("a product's input is not of its form")
    if rows:
        low = None if changes is None else reduce(x, changes, on)
        count = on.varying("rows", rows)
        quantised, excess = on.empty(x, groups * STRIDE, torch.uint8), on.empty(x, 1, torch.float32)
        on.call(
            QUANTISE[cpu.KINDS[x.dtype]],
            x.data_ptr(),
            quantised.data_ptr(),
            excess.data_ptr(),
            count,
            inner,
            groups,
        )
        on.call(
            (WIDE if wide else KERNELS)[cpu.KINDS[x.dtype]],
            quantised.data_ptr(),
            weight.panels.data_ptr(),
            result.data_ptr(),
            groups * WORDS,
            outer,
            count,
            torch.get_num_threads(),
            0 if bias is None else bias.data_ptr(),
            0 if onto is None else onto.data_ptr(),
            *change_arguments(low, changes),
            excess.data_ptr(),
            weight.scales.data_ptr(),
        )
    return result


@intrinsic
def _in_bytes(_: Any, numbers: Any, place: Any) -> Any:
    """GROUP fp32 numbers → their scale at `place`, then the rounded ones, 8 bits each; returns their sum."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def call(name: str, kind: Any, *given: Any) -> Any:
            function = ir.FunctionType(kind, [each.type for each in given])
            return builder.call(get_or_insert_function(builder.module, function, name), given)

        source, target = (builder.inttoptr(each, BYTES) for each in arguments)
        starts = [builder.bitcast(builder.gep(source, [LONG(LINE * v)]), FLOATS.as_pointer()) for v in range(VECTORS)]
        lines = [builder.load(start, align=4) for start in starts]
        sizes = [call("llvm.fabs.v16f32", FLOATS, line) for line in lines]
        largest = sizes[0]
        for size in sizes[1:]:
            largest = builder.select(builder.fcmp_ordered(">", size, largest), size, largest)
        one, narrow = ir.FloatType(), ir.VectorType(ir.IntType(8), LANES)
        most = call("llvm.vector.reduce.fmax.v16f32", one, largest)
        most = builder.select(builder.fcmp_ordered(">", most, one(TINY)), most, one(TINY))
        builder.store(builder.fdiv(most, one(127.0)), builder.bitcast(target, one.as_pointer()), align=4)
        inverse = spread(builder, builder.fdiv(one(127.0), most))
        total = ir.Constant(LINE_OF_WORDS, [0] * LANES)
        for v, line in enumerate(lines):
            whole = builder.fptosi(call("llvm.rint.v16f32", FLOATS, builder.fmul(line, inverse)), LINE_OF_WORDS)
            total = builder.add(total, whole)
            at = builder.bitcast(builder.gep(target, [LONG(4 + LANES * v)]), narrow.as_pointer())
            builder.store(builder.trunc(whole, narrow), at, align=1)
        return call("llvm.vector.reduce.add.v16i32", WORD, total)

    return types.int32(types.int64, types.int64), codegen


@compiled
def _quantise(pointer: Any, x: Any) -> None:
    """Arguments: 1 x, 2 rows in 8 bits, 3 excess, 4 rows, 5 in, 6 groups."""
    a = carray(pointer, 7)
    rows, inner, groups = a[4], a[5], a[6]
    scales, excess = carray(as_f32(a[2]), ALL), carray(as_f32(a[3]), ALL)
    numbers = np.zeros(GROUP, dtype=np.float32)
    while True:
        begin = take(pointer, QUANTISED_ROWS)
        if begin >= rows:
            return
        for row in range(begin, min(begin + QUANTISED_ROWS, rows)):
            too_much = np.float32(0)
            for group in range(groups):
                first, place = row * inner + group * GROUP, (row * groups + group) * STRIDE
                count = min(GROUP, inner - group * GROUP)
                own = x[first : first + count]
                for k in range(count):
                    numbers[k] = load(own[k])
                for k in range(count, GROUP):
                    numbers[k] = np.float32(0)
                total = _in_bytes(numbers.ctypes.data, a[2] + place)
                too_much += scales[place // 4] * np.float32(128 * total)
            excess[row] = too_much


@compiled
def _multiply(pointer: Any, x: Any, out: Any) -> None:
    """Arguments: 1 rows in 8 bits, 2 panels, then as in `registers.py`; 17 excess, 18 scales.

    `x` only tells the kind of the model's numbers.
    """
    a = carray(pointer, 19)
    words, outer, rows = a[4], a[5], a[6]
    panels = (outer + PANEL - 1) // PANEL
    per_task = rows_of_task(rows, panels, a[7], MOST, ROWS)
    pieces = (rows + per_task - 1) // per_task
    groups = words // WORDS
    like, excess, scales = carray(as_u8(a[1]), ALL), carray(as_f32(a[17]), ALL), carray(as_f32(a[18]), ALL)
    total = np.empty(MOST * PANEL, dtype=np.float32)
    address = total.ctypes.data
    task = take(pointer, 1)
    while task < panels * pieces:
        column, begin = task % panels * PANEL, task // panels * per_task
        end, width = min(begin + per_task, rows), min(PANEL, outer - column)
        panel = a[2] + task % panels * words * STEP
        later = panel + a[7] * words * STEP
        passes = (end - begin + MOST - 1) // MOST
        scale = scales[column : column + PANEL]
        for at in range(passes):
            first = begin + at * MOST
            count = min(MOST, end - first)
            for group in range(groups):
                source, lines = a[1] + (first * groups + group) * STRIDE + 4, panel + group * WORDS * STEP
                stride = STEP // passes
                ahead = later + words // passes * at * STEP + group * WORDS * stride
                _times(like, count, source, groups * STRIDE, lines, STEP, WORDS, address, STEP, group, ahead, stride)
            for r in range(count):
                own, too_much = total[r * PANEL : (r + 1) * PANEL], excess[first + r]
                for j in range(PANEL):
                    own[j] = (own[j] - too_much) * scale[j]
            if a[10] != 0:
                add_changes(x, a, first, count, task % panels, False, 0, address)
            finish(x, out, a, count, width, address, first, column)
        task = take(pointer, 1)


def _quantise_bf16(pointer: Any) -> None:
    _quantise(pointer, carray(as_u16(carray(pointer, 2)[1]), ALL))


def _quantise_fp32(pointer: Any) -> None:
    _quantise(pointer, carray(as_f32(carray(pointer, 2)[1]), ALL))


def _multiply_bf16(pointer: Any) -> None:
    place = carray(pointer, 4)[3]
    _multiply(pointer, carray(as_u16(place), ALL), carray(as_u16(place), ALL))


def _multiply_wide(pointer: Any) -> None:
    place = carray(pointer, 4)[3]
    _multiply(pointer, carray(as_u16(place), ALL), carray(as_f32(place), ALL))


def _multiply_fp32(pointer: Any) -> None:
    place = carray(pointer, 4)[3]
    _multiply(pointer, carray(as_f32(place), ALL), carray(as_f32(place), ALL))


QUANTISE = {"bf16": Kernel(_quantise_bf16), "fp32": Kernel(_quantise_fp32)}
KERNELS = {"bf16": Kernel(_multiply_bf16), "fp32": Kernel(_multiply_fp32)}
WIDE = {"bf16": Kernel(_multiply_wide), "fp32": KERNELS["fp32"]}
