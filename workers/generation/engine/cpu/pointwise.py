"""Row-wise kernels that transformers' modules spell as many small operations: norms, gates, the likeliest token."""

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
    exp,
    load,
    number,
    store,
    take,
)

ROWS = 8
SCAN = 64
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


@compiled
def _likeliest(pointer: Any, x: Any) -> None:
    """The first index of each row's largest number."""
    a = carray(pointer, 5)
    rows, width = a[3], a[4]
    out = carray(as_i64(a[2]), rows)
    while True:
        row = take(pointer, 1)
        if row >= rows:
            return
        own = x[row * width : (row + 1) * width]
        best, place = np.float32(-3.4e38), 0
        for begin in range(0, width, SCAN):
            part = own[begin : min(begin + SCAN, width)]
            most = np.float32(-3.4e38)
            for at in range(part.size):
                most = max(most, load(part[at]))
            if most > best:
                best, place = most, begin
        while place < width - 1 and load(own[place]) != best:
            place += 1
        out[row] = place


@body
def _norm_bf16(pointer: Any) -> None:
    a = carray(pointer, 4)
    _norm(pointer, carray(as_u16(a[1]), ALL), carray(as_u16(a[2]), ALL), carray(as_u16(a[3]), ALL))


@body
def _norm_fp32(pointer: Any) -> None:
    a = carray(pointer, 4)
    _norm(pointer, carray(as_f32(a[1]), ALL), carray(as_f32(a[2]), ALL), carray(as_f32(a[3]), ALL))


@body
def _gate_bf16(pointer: Any) -> None:
    a = carray(pointer, 3)
    _gate(pointer, carray(as_u16(a[1]), ALL), carray(as_u16(a[2]), ALL))


@body
def _gate_fp32(pointer: Any) -> None:
    a = carray(pointer, 3)
    _gate(pointer, carray(as_f32(a[1]), ALL), carray(as_f32(a[2]), ALL))


@body
def _likeliest_bf16(pointer: Any) -> None:
    _likeliest(pointer, carray(as_u16(carray(pointer, 2)[1]), ALL))


@body
def _likeliest_fp32(pointer: Any) -> None:
    _likeliest(pointer, carray(as_f32(carray(pointer, 2)[1]), ALL))


NORM = {"bf16": Kernel(_norm_bf16.address), "fp32": Kernel(_norm_fp32.address)}
GATE = {"bf16": Kernel(_gate_bf16.address), "fp32": Kernel(_gate_fp32.address)}
LIKELIEST = {"bf16": Kernel(_likeliest_bf16.address), "fp32": Kernel(_likeliest_fp32.address)}
