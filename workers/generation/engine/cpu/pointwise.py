"""Row-wise kernels that transformers' modules spell as many small operations: norms and gates."""

from typing import Any

import numpy as np
from numba import carray

from workers.generation.engine.cpu.openmp import Kernel
from workers.generation.engine.cpu.scalar import (
    ALL,
    as_f32,
    as_u16,
    compiled,
    exp,
    load,
    number,
    store,
    take,
)

ROWS = 8
SILU, GELU_TANH = 0, 1


@compiled
def _norm(pointer: Any, x: Any, weight: Any, out: Any) -> None:
    a = carray(pointer, 8)
    rows, width, epsilon, offset = a[4], a[5], number(a[6]), np.float32(a[7])
    while True:
        begin = take(pointer, ROWS)
        if begin >= rows:
            return
        for row in range(begin, min(begin + ROWS, rows)):
            own, to = x[row * width : (row + 1) * width], out[row * width : (row + 1) * width]
            total = np.float32(0)
            for at in range(width):
                value = load(own[at])
                total += value * value
            scale = np.float32(1) / np.sqrt(total / np.float32(width) + epsilon)
            for at in range(width):
                store(to, at, load(own[at]) * scale * (load(weight[at]) + offset))


@compiled
def _gate(pointer: Any, x: Any, out: Any) -> None:
    a = carray(pointer, 6)
    rows, width, kind = a[3], a[4], a[5]
    while True:
        begin = take(pointer, ROWS)
        if begin >= rows:
            return
        for row in range(begin, min(begin + ROWS, rows)):
            gate, up = x[2 * row * width : (2 * row + 1) * width], x[(2 * row + 1) * width : (2 * row + 2) * width]
            to = out[row * width : (row + 1) * width]
            if kind == SILU:
                for at in range(width):
                    g = load(gate[at])
                    store(to, at, g / (np.float32(1) + exp(-g)) * load(up[at]))
            else:
                for at in range(width):
                    g = load(gate[at])
                    inner = np.float32(1.5957691216) * (g + np.float32(0.044715) * g * g * g)
                    store(to, at, g / (np.float32(1) + exp(-inner)) * load(up[at]))


def _norm_bf16(pointer: Any) -> None:
    a = carray(pointer, 4)
    _norm(pointer, carray(as_u16(a[1]), ALL), carray(as_u16(a[2]), ALL), carray(as_u16(a[3]), ALL))


def _norm_fp32(pointer: Any) -> None:
    a = carray(pointer, 4)
    _norm(pointer, carray(as_f32(a[1]), ALL), carray(as_f32(a[2]), ALL), carray(as_f32(a[3]), ALL))


def _gate_bf16(pointer: Any) -> None:
    a = carray(pointer, 3)
    _gate(pointer, carray(as_u16(a[1]), ALL), carray(as_u16(a[2]), ALL))


def _gate_fp32(pointer: Any) -> None:
    a = carray(pointer, 3)
    _gate(pointer, carray(as_f32(a[1]), ALL), carray(as_f32(a[2]), ALL))


NORM = {"bf16": Kernel(_norm_bf16), "fp32": Kernel(_norm_fp32)}
GATE = {"bf16": Kernel(_gate_bf16), "fp32": Kernel(_gate_fp32)}
