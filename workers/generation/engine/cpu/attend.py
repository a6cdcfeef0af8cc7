"""Decode attention over pages, and the step before it: rotate, normalise and store what a step's rows produced.

Pages are `[blocks, kv_heads, head_dim, PAGE]` for keys (scores then need no horizontal sums) and
`[blocks, kv_heads, PAGE, head_dim]` for values. Only live positions are read, once for all heads of a KV group.
"""

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

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
    prefetch,
    store,
    take,
)
from workers.generation.engine.kv_cache import BLOCK_SIZE as PAGE

LINE = 32


@compiled
def _widen(page: Any, wide: Any) -> None:
    """A page as fp32, once for all heads of its group."""
    for at in range(wide.size):
        wide[at] = load(page[at])


@compiled
def _scores(query: Any, page: Any, scores: Any, ahead: Any, g: int, group: int) -> None:
    """scores[PAGE] = query[head_dim] · page[head_dim, PAGE]."""
    for j in range(PAGE):
        scores[j] = np.float32(0)
    for d in range(0, query.size, 4):
        q0, q1, q2, q3 = query[d], query[d + 1], query[d + 2], query[d + 3]
        for line in range(g, 4, group):
            prefetch(ahead, (d + line) * PAGE)
        rows = page[d * PAGE : (d + 4) * PAGE]
        for j in range(PAGE):
            scores[j] += q0 * rows[j] + q1 * rows[PAGE + j] + q2 * rows[2 * PAGE + j] + q3 * rows[3 * PAGE + j]


@compiled
def _softmax(scores: Any) -> Any:
    """In place, not yet divided by their sum, which is returned."""
    most = np.float32(-3.0e38)
    for j in range(scores.size):
        most = max(most, scores[j])
    total = np.float32(0)
    for j in range(scores.size):
        weight = exp(scores[j] - most)
        scores[j] = weight
        total += weight
    return total


@compiled
def _accumulate(weights: Any, page: Any, result: Any, ahead: Any, g: int, group: int) -> None:
    """result[head_dim] += weights[PAGE] · page[PAGE, head_dim]."""
    size = result.size
    for j in range(0, PAGE, 4):
        for line in range(g * LINE, 4 * size, group * LINE):
            prefetch(ahead, j * size + line)
        w0, w1, w2, w3 = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        rows = page[j * size : (j + 4) * size]
        r0, r1, r2, r3 = rows[:size], rows[size : 2 * size], rows[2 * size : 3 * size], rows[3 * size :]
        for d in range(size):
            result[d] += w0 * r0[d] + w1 * r1[d] + w2 * r2[d] + w3 * r3[d]


@compiled
def _attend(pointer: Any, query: Any, keys: Any, values: Any, output: Any) -> None:
    """Arguments: 1 queries, 2 key pages, 3 value pages, 4 output, 6 sequences, 7 heads, 8 kv_heads, 9 head_dim,
    10 blocks per table, 11 numbers per query row and 12 per output row, 13 window (0: none), 14 scale, 15 rows of the
    sequences, 16 tables, 17 lengths, 18 scratch, 19 how many threads have taken their part of it.
    """
    a = carray(pointer, 20)
    count, heads, kv_heads, head_dim, width = a[6], a[7], a[8], a[9], a[10]
    row_stride, out_stride, window, scale = a[11], a[12], a[13], number(a[14])
    rows, lengths = carray(as_i64(a[15]), count), carray(as_i64(a[17]), count)
    tables = carray(as_i64(a[16]), count * width)
    group, page_size = heads // kv_heads, head_dim * PAGE
    size = group * (width * PAGE + 2 * head_dim) + page_size
    scratch = carray(as_f32(a[18] + 4 * size * take(as_i64(a[19]), 1)), size)
    wide, scaled = scratch[:page_size], scratch[page_size : page_size + group * head_dim]
    result = scratch[page_size + group * head_dim : page_size + 2 * group * head_dim]
    scores = scratch[page_size + 2 * group * head_dim :]
    stretch = width * PAGE
    while True:
        task = take(pointer, 1)
        if task >= count * kv_heads:
            return
        item, head = task // kv_heads, task % kv_heads
        length = lengths[item]
        first = max(length - window, 0) if window > 0 else 0
        begin, end = first // PAGE, (length + PAGE - 1) // PAGE
        table = tables[item * width : (item + 1) * width]
        own = query[rows[item] * row_stride + head * group * head_dim :]
        for at in range(group * head_dim):
            scaled[at] = load(own[at]) * scale
            result[at] = np.float32(0)
        for b in range(begin, end):
            at = (table[b] * kv_heads + head) * page_size
            ahead = (
                keys[(table[b + 1] * kv_heads + head) * page_size :]
                if b + 1 < end
                else values[(table[begin] * kv_heads + head) * page_size :]
            )
            _widen(keys[at : at + page_size], wide)
            for g in range(group):
                place = g * stretch + b * PAGE
                _scores(scaled[g * head_dim : (g + 1) * head_dim], wide, scores[place : place + PAGE], ahead, g, group)
        for g in range(group):
            line = scores[g * stretch : (g + 1) * stretch]
            total = _softmax(line[first:length])
            for j in range(first, length):
                line[j] /= total
            for j in range(begin * PAGE, first):
                line[j] = np.float32(0)
            for j in range(length, end * PAGE):
                line[j] = np.float32(0)
        for b in range(begin, end):
            at = (table[b] * kv_heads + head) * page_size
            ahead = values[(table[min(b + 1, end - 1)] * kv_heads + head) * page_size :]
            _widen(values[at : at + page_size], wide)
            for g in range(group):
                place = g * stretch + b * PAGE
                _accumulate(
                    scores[place : place + PAGE], wide, result[g * head_dim : (g + 1) * head_dim], ahead, g, group
                )
        own = output[rows[item] * out_stride + head * group * head_dim :]
        for at in range(group * head_dim):
            store(own, at, result[at])


def scratch(group: int, blocks: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Memory for every thread's scores, queries, results and one widened page; and its counter of takers."""
    size = group * (blocks * PAGE + 2 * head_dim) + head_dim * PAGE
    return torch.empty(torch.get_num_threads(), size), torch.zeros(1, dtype=torch.int64)


@body
def _attend_bf16(pointer: Any) -> None:
    a = carray(pointer, 5)
    query, keys, values, output = as_u16(a[1]), as_u16(a[2]), as_u16(a[3]), as_u16(a[4])
    _attend(pointer, carray(query, ALL), carray(keys, ALL), carray(values, ALL), carray(output, ALL))


@body
def _attend_fp32(pointer: Any) -> None:
    a = carray(pointer, 5)
    query, keys, values, output = as_f32(a[1]), as_f32(a[2]), as_f32(a[3]), as_f32(a[4])
    _attend(pointer, carray(query, ALL), carray(keys, ALL), carray(values, ALL), carray(output, ALL))


ATTEND = {"bf16": Kernel(_attend_bf16.address), "fp32": Kernel(_attend_fp32.address)}
