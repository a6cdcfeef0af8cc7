"""Attention over pages for prompts and decoding alike: online softmax (FlashAttention, arXiv 2205.14135) in stretches
of a few pages, all heads of a KV group at once.

Pages of keys are `[kv_heads, head_dim / PACK, PAGE, PACK]`, of values `[kv_heads, PAGE / PACK, width, PACK]`, where
PACK numbers fill a 32-bit word (2 of bf16) and `width` is head_dim up to whole vectors: the panels of `tile.py`. What a
position sees is added up in the same order whatever shares the step with it.
"""

from typing import Any

import numpy as np
from numba import carray

from workers.generation.engine.cpu import amx
from workers.generation.engine.cpu.openmp import Kernel
from workers.generation.engine.cpu.scalar import (
    ALL,
    as_f32,
    as_i64,
    as_u16,
    compiled,
    exp,
    nothing,
    number,
    store,
    take,
    typed,
)
from workers.generation.engine.cpu.soften import LEAST, of_kind
from workers.generation.engine.cpu.tile import LANES, MULTIPLY
from workers.generation.engine.kv_cache import BLOCK_SIZE as PAGE

STRETCH = 4 * PAGE
ROWS = 48  # of one task: queries of some positions times the heads of a group
_soften, _LEAST = of_kind(STRETCH // LANES), np.float32(LEAST)
_score_page, _weigh_four, _weigh_one = MULTIPLY[PAGE // LANES], MULTIPLY[4], MULTIPLY[1]


def value_width(head_dim: int) -> int:
    """Numbers that a position's value takes in its page."""
    return -(-head_dim // LANES) * LANES


def positions_per_task(group: int) -> int:
    return max(1, ROWS // group)


def attention(whole: int, begin_tasks: Any, score: Any, weigh: Any, end_tasks: Any) -> Any:
    """The kernel; `score` and `weigh` may take `whole` rows where there are fewer."""

    @compiled
    def run(pointer: Any, query: Any, keys: Any, output: Any) -> None:
        """Arguments: 1 queries (with keys and values behind them), 2 key pages, 3 value pages, 4 output, 5 heads,
        6 kv_heads, 7 head_dim, 8 window (0: none), 9 scale, 10 tasks `[n, 4]`: first row, rows, position of the first,
        table, 11 how many, 12 tables, 13 blocks of each.
        """
        a = carray(pointer, 14)
        heads, kv_heads, head_dim, window, scale = a[5], a[6], a[7], a[8], number(a[9])
        tasks, blocks = carray(as_i64(a[10]), a[11] * 4), a[13]
        group, size = heads // kv_heads, keys.itemsize
        width, pack = (head_dim + LANES - 1) // LANES * LANES, 4 // size
        key_page, value_page, words = head_dim * PAGE * size, width * PAGE * size, head_dim * size // 4
        most_rows = (max(1, ROWS // group) * group + whole - 1) // whole * whole
        queries_own = np.empty(most_rows * head_dim * size // 4, dtype=np.uint32)
        weights_own = np.empty(most_rows * STRETCH * size // 4, dtype=np.uint32)
        scores, result = np.empty(most_rows * STRETCH, dtype=np.float32), np.empty(most_rows * width, dtype=np.float32)
        most, sums = np.empty(most_rows, dtype=np.float32), np.empty(most_rows * LANES, dtype=np.float32)
        row_stride, out_stride = (heads + 2 * kv_heads) * head_dim, heads * head_dim
        begin_tasks()
        at = take(pointer, 1)
        while at < a[11] * kv_heads:
            # Asked for here: numba frees an array after its last mention, whatever keeps its address.
            queries, weights_at, scores_at = queries_own.ctypes.data, weights_own.ctypes.data, scores.ctypes.data
            result_at, sums_at, scaled = result.ctypes.data, sums.ctypes.data, typed(query, queries)
            task, head = tasks[at // kv_heads * 4 : at // kv_heads * 4 + 4], at % kv_heads
            first_row, count, start = task[0], task[1], task[2]
            table = carray(as_i64(a[12] + task[3] * blocks * 8), blocks)
            rows = count * group
            for token in range(count):
                source = query[(first_row + token) * row_stride + head * group * head_dim :]
                target = scaled[token * group * head_dim :]
                for d in range(group * head_dim):
                    target[d] = source[d]
            for r in range(rows):
                most[r] = _LEAST
            for j in range(rows * LANES):
                sums[j] = np.float32(0)
            for d in range(rows * width):
                result[d] = np.float32(0)
            end = start + count
            begin = max(start + 1 - window, 0) if window > 0 else 0
            for stretch in range(begin // STRETCH * STRETCH, end, STRETCH):
                pages = min(STRETCH, end - stretch + PAGE - 1) // PAGE
                for p in range(pages):
                    block = table[stretch // PAGE + p] * kv_heads + head
                    page, ahead = a[2] + block * key_page, a[3] + block * value_page
                    to = scores_at + 4 * PAGE * p
                    score(keys, rows, queries, head_dim * size, page, words, to, ahead)
                for r in range(rows):
                    position = start + r // group
                    low = max(position + 1 - window - stretch, 0) if window > 0 else 0
                    high = min(max(position + 1 - stretch, 0), pages * PAGE)
                    before = most[r]
                    most[r] = _soften(
                        keys,
                        scores_at + 4 * STRETCH * r,
                        weights_at + size * STRETCH * r,
                        sums_at + 4 * LANES * r,
                        min(low, high),
                        high,
                        scale,
                        before,
                    )
                    if most[r] > before:
                        shrink = exp(before - most[r])
                        for d in range(r * width, (r + 1) * width):
                            result[d] *= shrink
                for p in range(pages):
                    block = table[stretch // PAGE + p] * kv_heads + head
                    page = a[3] + block * value_page
                    own_weights = weights_at + PAGE * size * p
                    weigh(keys, words, rows, own_weights, STRETCH * size, page, width, PAGE // pack, result_at)
            for r in range(rows):
                target = output[(first_row + r // group) * out_stride + (head * group + r % group) * head_dim :]
                total = np.float32(0)
                for j in range(r * LANES, (r + 1) * LANES):
                    total += sums[j]
                for d in range(head_dim):
                    store(target, d, result[r * width + d] / total)
            at = take(pointer, 1)
        end_tasks()

    return run


@compiled
def _score(like: Any, rows: Any, queries: Any, stride: Any, page: Any, words: Any, to: Any, ahead: Any) -> None:
    _score_page(like, rows, queries, stride, page, 4 * PAGE, words, to, 4 * STRETCH, 0, ahead, 4 * PAGE)


@compiled
def _weigh(
    like: Any, _: Any, rows: Any, weights: Any, stride: Any, page: Any, width: Any, words: Any, out: Any
) -> None:
    """out[rows, width] += weights · page."""
    at = 0
    while at + 4 * LANES <= width:
        place = page + 4 * at
        _weigh_four(like, rows, weights, stride, place, 4 * width, words, out + 4 * at, 4 * width, 1, place, 0)
        at += 4 * LANES
    while at < width:
        place = page + 4 * at
        _weigh_one(like, rows, weights, stride, place, 4 * width, words, out + 4 * at, 4 * width, 1, place, 0)
        at += LANES


@compiled
def _score_tiles(like: Any, rows: Any, queries: Any, stride: Any, page: Any, words: Any, to: Any, ahead: Any) -> None:
    """Where a head is whole steps; elsewhere as without tiles, in both products."""
    if words % amx.STEP == 0:
        amx.score(rows, queries, stride, page, 4 * PAGE, words, to, 4 * STRETCH, ahead)
    else:
        _score(like, rows, queries, stride, page, words, to, ahead)


@compiled
def _weigh_tiles(
    like: Any, head: Any, rows: Any, weights: Any, stride: Any, page: Any, width: Any, words: Any, out: Any
) -> None:
    """`head`: words of one."""
    if head % amx.STEP == 0:
        amx.weigh(rows, weights, stride, page, width, words, out)
    else:
        _weigh(like, head, rows, weights, stride, page, width, words, out)


_attend = attention(1, nothing, _score, _weigh, nothing)
_attend_tiles = _attend
if amx.AVAILABLE:
    _attend_tiles = attention(amx.TILE, amx.configure, _score_tiles, _weigh_tiles, amx.release)


def _attend_bf16(pointer: Any) -> None:
    a = carray(pointer, 5)
    _attend_tiles(pointer, carray(as_u16(a[1]), ALL), carray(as_u16(a[2]), ALL), carray(as_u16(a[4]), ALL))


def _attend_fp32(pointer: Any) -> None:
    a = carray(pointer, 5)
    _attend(pointer, carray(as_f32(a[1]), ALL), carray(as_f32(a[2]), ALL), carray(as_f32(a[4]), ALL))


ATTEND = {"bf16": Kernel(_attend_bf16), "fp32": Kernel(_attend_fp32)}
