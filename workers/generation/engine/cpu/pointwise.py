"""Row-wise kernels that transformers' modules spell as many small operations: look-ups, norms and gates."""

from typing import Any

import numpy as np
from numba import carray

from workers.generation.engine.cpu.openmp import Kernel
from workers.generation.engine.cpu.scalar import (
    ALL,
    as_f32,
    as_i64,
    as_u16,
    as_u32,
    compiled,
    exp,
    load,
    number,
    store,
    take,
)

ROWS = 8
SILU, GELU_TANH = 0, 1


def _look_up(pointer: Any) -> None:
    """Arguments: 1 table, 2 indices, 3 out, 4 rows, 5 words of 32 bits of a row."""
    a = carray(pointer, 6)
    table, out, words = carray(as_u32(a[1]), ALL), carray(as_u32(a[3]), ALL), a[5]
    indices = carray(as_i64(a[2]), ALL)
    while True:
        begin = take(pointer, ROWS)
        if begin >= a[4]:
            return
        for row in range(begin, min(begin + ROWS, a[4])):
            own, to = table[indices[row] * words :], out[row * words :]
            for word in range(words):
                to[word] = own[word]


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
def _gate(pointer: Any, gate: Any, up: Any, out: Any) -> None:
    """Arguments: 1 gate, 2 up, 3 out, 4 rows, 5 width, 6 numbers from a row of either to its next, 7 kind."""
    a = carray(pointer, 8)
    rows, width, stride, kind = a[4], a[5], a[6], a[7]
    while True:
        begin = take(pointer, ROWS)
        if begin >= rows:
            return
        for row in range(begin, min(begin + ROWS, rows)):
            gates, ups = gate[row * stride : row * stride + width], up[row * stride : row * stride + width]
            to = out[row * width : (row + 1) * width]
            if kind == SILU:
                for at in range(width):
                    g = load(gates[at])
                    store(to, at, g / (np.float32(1) + exp(-g)) * load(ups[at]))
            else:
                for at in range(width):
                    g = load(gates[at])
                    inner = np.float32(1.5957691216) * (g + np.float32(0.044715) * g * g * g)
                    store(to, at, g / (np.float32(1) + exp(-inner)) * load(ups[at]))


@compiled
def _norm_back(pointer: Any, x: Any, weight: Any, gradient: Any, out: Any) -> None:
    """Arguments: 1 x, 2 weight, 3 gradient, 4 out, 5 rows, 6 width, 7 epsilon, 8 offset."""
    a = carray(pointer, 9)
    rows, width, epsilon, offset = a[5], a[6], number(a[7]), np.float32(a[8])
    while True:
        begin = take(pointer, ROWS)
        if begin >= rows:
            return
        for row in range(begin, min(begin + ROWS, rows)):
            own, slopes = x[row * width : (row + 1) * width], gradient[row * width : (row + 1) * width]
            to = out[row * width : (row + 1) * width]
            total, along = np.float32(0), np.float32(0)
            for at in range(width):
                value = load(own[at])
                total += value * value
                along += value * load(slopes[at]) * (load(weight[at]) + offset)
            scale = np.float32(1) / np.sqrt(total / np.float32(width) + epsilon)
            back = along * scale * scale * scale / np.float32(width)
            for at in range(width):
                store(to, at, load(slopes[at]) * (load(weight[at]) + offset) * scale - load(own[at]) * back)


@compiled
def _gate_back(pointer: Any, gate: Any, up: Any, gradient: Any, of_gate: Any, of_up: Any) -> None:
    """Arguments: 1 gate, 2 up, 3 gradient, 4 the gate's gradient, 5 up's, 6 rows, 7 width, 8 kind."""
    a = carray(pointer, 9)
    rows, width, kind = a[6], a[7], a[8]
    one = np.float32(1)
    while True:
        begin = take(pointer, ROWS)
        if begin >= rows:
            return
        first, end = begin * width, min(begin + ROWS, rows) * width
        gates, ups, slopes = gate[first:end], up[first:end], gradient[first:end]
        to_gate, to_up = of_gate[first:end], of_up[first:end]
        if kind == SILU:
            for at in range(len(slopes)):
                g, slope = load(gates[at]), load(slopes[at])
                part = one / (one + exp(-g))
                store(to_gate, at, slope * load(ups[at]) * part * (one + g * (one - part)))
                store(to_up, at, slope * g * part)
        else:
            for at in range(len(slopes)):
                g, slope = load(gates[at]), load(slopes[at])
                inner = np.float32(1.5957691216) * (g + np.float32(0.044715) * g * g * g)
                steep = np.float32(1.5957691216) * (one + np.float32(0.134145) * g * g)
                part = one / (one + exp(-inner))
                store(to_gate, at, slope * load(ups[at]) * part * (one + g * (one - part) * steep))
                store(to_up, at, slope * g * part)


def _norm_bf16(pointer: Any) -> None:
    a = carray(pointer, 4)
    _norm(pointer, carray(as_u16(a[1]), ALL), carray(as_u16(a[2]), ALL), carray(as_u16(a[3]), ALL))


def _norm_fp32(pointer: Any) -> None:
    a = carray(pointer, 4)
    _norm(pointer, carray(as_f32(a[1]), ALL), carray(as_f32(a[2]), ALL), carray(as_f32(a[3]), ALL))


def _gate_bf16(pointer: Any) -> None:
    a = carray(pointer, 4)
    _gate(pointer, carray(as_u16(a[1]), ALL), carray(as_u16(a[2]), ALL), carray(as_u16(a[3]), ALL))


def _gate_fp32(pointer: Any) -> None:
    a = carray(pointer, 4)
    _gate(pointer, carray(as_f32(a[1]), ALL), carray(as_f32(a[2]), ALL), carray(as_f32(a[3]), ALL))


def _norm_back_bf16(pointer: Any) -> None:
    a = carray(pointer, 5)
    x, weight = carray(as_u16(a[1]), ALL), carray(as_u16(a[2]), ALL)
    _norm_back(pointer, x, weight, carray(as_u16(a[3]), ALL), carray(as_u16(a[4]), ALL))


def _norm_back_fp32(pointer: Any) -> None:
    a = carray(pointer, 5)
    x, weight = carray(as_f32(a[1]), ALL), carray(as_f32(a[2]), ALL)
    _norm_back(pointer, x, weight, carray(as_f32(a[3]), ALL), carray(as_f32(a[4]), ALL))


def _gate_back_bf16(pointer: Any) -> None:
    a = carray(pointer, 6)
    gate, up, gradient = carray(as_u16(a[1]), ALL), carray(as_u16(a[2]), ALL), carray(as_u16(a[3]), ALL)
    _gate_back(pointer, gate, up, gradient, carray(as_u16(a[4]), ALL), carray(as_u16(a[5]), ALL))


def _gate_back_fp32(pointer: Any) -> None:
    a = carray(pointer, 6)
    gate, up, gradient = carray(as_f32(a[1]), ALL), carray(as_f32(a[2]), ALL), carray(as_f32(a[3]), ALL)
    _gate_back(pointer, gate, up, gradient, carray(as_f32(a[4]), ALL), carray(as_f32(a[5]), ALL))


LOOK_UP = Kernel(_look_up)
NORM = {"bf16": Kernel(_norm_bf16), "fp32": Kernel(_norm_fp32)}
GATE = {"bf16": Kernel(_gate_bf16), "fp32": Kernel(_gate_fp32)}
NORM_BACK = {"bf16": Kernel(_norm_back_bf16), "fp32": Kernel(_norm_back_fp32)}
GATE_BACK = {"bf16": Kernel(_gate_back_bf16), "fp32": Kernel(_gate_back_fp32)}
