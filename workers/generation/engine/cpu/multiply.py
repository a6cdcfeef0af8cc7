"""The base's products: packed weights, any number of rows; in vector registers (`registers.py`) or, where the processor
has them for bf16, in matrices (`matrices.py`).

Every row is added up in the same order, however many share the call: a token does not depend on its company. What
adapters change is added to the same sums before they are rounded (see `low_rank.py`).
"""

from collections.abc import Callable
from typing import Any

import torch
from numba import carray
from torch import Tensor

from workers.generation.engine import cpu
from workers.generation.engine.cpu import amx
from workers.generation.engine.cpu.low_rank import Changes, reduce
from workers.generation.engine.cpu.matrices import into_tiles, multiply_matrices
from workers.generation.engine.cpu.openmp import Kernel
from workers.generation.engine.cpu.registers import into_panels, multiply_in_registers
from workers.generation.engine.cpu.scalar import ALL, as_f32, as_u16
from workers.generation.engine.cpu.tile import PANEL
from workers.generation.engine.kernel_calls import NOW, Argument, Caller

_multiply_pairs = multiply_matrices if amx.AVAILABLE else multiply_in_registers


def pack(weight: Tensor, place: Callable[[Tensor], Tensor] = Tensor.contiguous) -> Tensor:
    """`[out, in]` → panels in memory that `place` gives, filled up with zeros to whole panels and steps."""
    outer, inner = weight.shape
    missing = (0, -inner % step_of(weight), 0, -outer % PANEL)
    weight = torch.nn.functional.pad(weight, missing) if any(missing) else weight
    return place(into_tiles(weight) if in_matrices(weight) else into_panels(weight))


def in_matrices(x: Tensor) -> bool:
    return amx.AVAILABLE and x.dtype == torch.bfloat16


def step_of(x: Tensor) -> int:
    """Numbers of a row that are multiplied at a time, at least."""
    return amx.STEP * 2 if in_matrices(x) else 1


def form_of(panels: Tensor) -> tuple[int, int]:
    """Outputs and inputs of a packed weight, filled up."""
    if panels.dim() == 6:
        halves, steps, tiles, words, outputs, pack_ = panels.shape
        return halves * tiles * outputs, steps * words * pack_
    groups, words, outputs, pack_ = panels.shape
    return groups * outputs, words * pack_


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
    form = outer + -outer % PANEL, inner + -inner % step_of(x)
    fits = batch == 1 and x.is_contiguous() and x.dtype == panels.dtype and form == form_of(panels)
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


def _multiply_bf16(pointer: Any) -> None:
    a = carray(pointer, 4)
    _multiply_pairs(pointer, carray(as_u16(a[1]), ALL), carray(as_u16(a[3]), ALL))


def _multiply_wide(pointer: Any) -> None:
    a = carray(pointer, 4)
    _multiply_pairs(pointer, carray(as_u16(a[1]), ALL), carray(as_f32(a[3]), ALL))


def _multiply_fp32(pointer: Any) -> None:
    a = carray(pointer, 4)
    multiply_in_registers(pointer, carray(as_f32(a[1]), ALL), carray(as_f32(a[3]), ALL))


KERNELS = {"bf16": Kernel(_multiply_bf16), "fp32": Kernel(_multiply_fp32)}
WIDE = {"bf16": Kernel(_multiply_wide), "fp32": KERNELS["fp32"]}
