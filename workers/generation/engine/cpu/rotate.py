"""Between the QKV product and attention: head norms, rotary positions (arXiv 2104.09864), and storing K and V in pages
(for their layout see `attend.py`)."""

from typing import Any

import numpy as np
from numba import carray

from workers.generation.engine.cpu.openmp import Kernel
from workers.generation.engine.cpu.scalar import (
    ALL,
    as_f32,
    as_i64,
    as_u16,
    compiled,
    finite,
    load,
    number,
    pack_of,
    store,
    take,
)
from workers.generation.engine.cpu.vectors import LANES
from workers.generation.engine.kv_cache import BLOCK_SIZE as PAGE


@compiled
def _head(own: Any, weight: Any, normed: bool, epsilon: Any, offset: Any, cos: Any, sin: Any) -> None:
    """One head of one token, in place: RMS norm if it has one, then the rotation of its first `cos.size` numbers."""
    scale = np.float32(1)
    if normed:
        total = np.float32(0)
        for at in range(own.size):
            total += load(own[at]) * load(own[at])
        scale = np.float32(1) / np.sqrt(total / np.float32(own.size) + epsilon)
        for at in range(own.size):
            store(own, at, load(own[at]) * scale * (load(weight[at]) + offset))
    half = cos.size // 2
    # Slices, so that the compiler sees two ranges that do not meet.
    first, second = own[:half], own[half : 2 * half]
    cos_first, cos_second, sin_first, sin_second = cos[:half], cos[half:], sin[:half], sin[half:]
    for at in range(half):
        x, y = load(first[at]), load(second[at])
        store(first, at, x * load(cos_first[at]) - y * load(sin_first[at]))
        store(second, at, y * load(cos_second[at]) + x * load(sin_second[at]))


@compiled
def _rotate(pointer: Any, qkv: Any, cosines: Any, sines: Any, query_norm: Any, key_norm: Any, pages: Any) -> None:
    """Arguments: 1 qkv `[rows, heads + 2 · kv_heads, head_dim]`, 2 cos and 3 sin `[rows, rotated]`, 4 and 5 the head
    norms' weights (0: none), 6 the first page's keys, 7 its values, 8 rows, 9 heads, 10 kv_heads, 11 head_dim,
    12 rotated, 13 epsilon, 14 offset of the norms' weights, 15 places `[rows]`: block · PAGE + position in it,
    16 threads.

    Of many rows neighbours, which often share a page, are one thread's: two would wait for each other's lines.
    """
    a = carray(pointer, 17)
    rows, heads, kv_heads, head_dim, rotated = a[8], a[9], a[10], a[11], a[12]
    epsilon, offset = number(a[13]), np.float32(a[14])
    places = carray(as_i64(a[15]), rows)
    keys, values = pages
    width, pack = (heads + 2 * kv_heads) * head_dim, pack_of(keys)
    width_stored = (head_dim + LANES - 1) // LANES * LANES
    per_task = max(1, min(PAGE, rows // (4 * a[16])))
    begin = take(pointer, per_task)
    while begin < rows:
        for row in range(begin, min(begin + per_task, rows)):
            cos, sin = cosines[row * rotated : (row + 1) * rotated], sines[row * rotated : (row + 1) * rotated]
            token = qkv[row * width : (row + 1) * width]
            for h in range(heads):
                _head(token[h * head_dim : (h + 1) * head_dim], query_norm, a[4] != 0, epsilon, offset, cos, sin)
            block, offset_in_page = places[row] // PAGE, places[row] % PAGE
            for h in range(kv_heads):
                key = token[(heads + h) * head_dim : (heads + h + 1) * head_dim]
                value = token[(heads + kv_heads + h) * head_dim : (heads + kv_heads + h + 1) * head_dim]
                _head(key, key_norm, a[5] != 0, epsilon, offset, cos, sin)
                page = (block * kv_heads + h) * (head_dim + width_stored) * PAGE
                column = keys[page + offset_in_page * pack :]
                line = values[page + offset_in_page // pack * width_stored * pack + offset_in_page % pack :]
                for word in range(head_dim // pack):
                    for i in range(pack):
                        column[(word * PAGE) * pack + i] = finite(key[word * pack + i])
                for d in range(head_dim):
                    line[d * pack] = finite(value[d])
        begin = take(pointer, per_task)


def _rotate_bf16(pointer: Any) -> None:
    a = carray(pointer, 8)
    cos, sin = carray(as_u16(a[2]), ALL), carray(as_u16(a[3]), ALL)
    norms = carray(as_u16(a[4]), ALL), carray(as_u16(a[5]), ALL)
    pages = carray(as_u16(a[6]), ALL), carray(as_u16(a[7]), ALL)
    _rotate(pointer, carray(as_u16(a[1]), ALL), cos, sin, norms[0], norms[1], pages)


def _rotate_fp32(pointer: Any) -> None:
    a = carray(pointer, 8)
    cos, sin = carray(as_f32(a[2]), ALL), carray(as_f32(a[3]), ALL)
    norms = carray(as_f32(a[4]), ALL), carray(as_f32(a[5]), ALL)
    pages = carray(as_f32(a[6]), ALL), carray(as_f32(a[7]), ALL)
    _rotate(pointer, carray(as_f32(a[1]), ALL), cos, sin, norms[0], norms[1], pages)


ROTATE = {"bf16": Kernel(_rotate_bf16), "fp32": Kernel(_rotate_fp32)}
