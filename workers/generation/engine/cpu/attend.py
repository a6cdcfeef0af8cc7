"""Attention over pages for prompts and decoding alike: online softmax (FlashAttention, arXiv 2205.14135) in stretches
of a few pages, all heads of a KV group at once.

A head's page holds keys, `[head_dim / PACK, PAGE, PACK]`, and behind them values, `[PAGE / PACK, width, PACK]`, where
PACK numbers fill a 32-bit word (2 of bf16) and `width` is head_dim up to whole vectors: the panels of `tile.py`. With
them side by side memory is read faster. What a position sees is added up in the same order whatever shares the step
with it.
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
    pack_of,
    store,
    take,
    typed,
)
from workers.generation.engine.cpu.soften import LEAST, greatest, of_kind, scale_lines
from workers.generation.engine.cpu.tile import MULTIPLY
from workers.generation.engine.cpu.vectors import LANES
from workers.generation.engine.kv_cache import BLOCK_SIZE as PAGE

STRETCH = 4 * PAGE
ROWS = 48  # of one task: queries of some positions times the heads of a group
_VECTORS = [PAGE * pages // LANES for pages in range(1, 5)]
_soften_one, _soften_two, _soften_three, _soften_four = map(of_kind, _VECTORS)
_greatest_one, _greatest_two, _greatest_three, _greatest_four = map(greatest, _VECTORS)
_LEAST = np.float32(LEAST)
_score_page, _weigh_four, _weigh_one = MULTIPLY[PAGE // LANES], MULTIPLY[4], MULTIPLY[1]


def value_width(head_dim: int) -> int:
    """Numbers that a position's value takes in its page."""
    return -(-head_dim // LANES) * LANES


def positions_per_task(group: int) -> int:
    return max(1, ROWS // group)


@compiled
def page_of(a: Any, task: Any, page: Any) -> Any:
    """Where a task's `page`-th page of its first stretch is; of the first task, where there is no such task."""
    task = task if task < a[11] * a[6] else 0
    own = carray(as_i64(a[10]), a[11] * 4)[task // a[6] * 4 :]
    begin = max(own[2] + 1 - a[8], 0) // STRETCH * STRETCH // PAGE if a[8] > 0 else 0
    return carray(as_i64(a[12] + own[3] * a[13] * 8), a[13])[min(begin + page, a[13] - 1)] * a[6] + task % a[6]


def attention(whole: int, begin_tasks: Any, score: Any, weigh: Any, end_tasks: Any) -> Any:
    """The kernel; `score` and `weigh` may take `whole` rows where there are fewer."""

    @compiled
    def run(pointer: Any, query: Any, keys: Any, output: Any) -> None:
        """Arguments: 1 queries (with keys and values behind them), 2 the first page's keys, 3 its values, 4 output,
        5 heads, 6 kv_heads, 7 head_dim, 8 window (0: none), 9 scale, 10 tasks `[n, 4]`: first row, rows, position of
        the first, table, 11 how many, 12 tables, 13 blocks of each.
        """
        a = carray(pointer, 14)
        heads, kv_heads, head_dim, window, scale = a[5], a[6], a[7], a[8], number(a[9])
        tasks, blocks = carray(as_i64(a[10]), a[11] * 4), a[13]
        group, size = heads // kv_heads, keys.itemsize
        width = (head_dim + LANES - 1) // LANES * LANES
        page, words = (head_dim + width) * PAGE * size, head_dim * size // 4
        most_rows = (max(1, ROWS // group) * group + whole - 1) // whole * whole
        queries_own = np.empty(most_rows * head_dim * size // 4, dtype=np.uint32)
        weights_own = np.empty(most_rows * STRETCH * size // 4, dtype=np.uint32)
        scores, result = np.empty(most_rows * STRETCH, dtype=np.float32), np.empty(most_rows * width, dtype=np.float32)
        most, before = np.empty(most_rows, dtype=np.float32), np.empty(most_rows, dtype=np.float32)
        sums = np.empty(most_rows * LANES, dtype=np.float32)
        values, later = np.empty(STRETCH // PAGE, dtype=np.int64), np.empty(STRETCH // PAGE, dtype=np.int64)
        row_stride, out_stride = (heads + 2 * kv_heads) * head_dim, heads * head_dim
        begin_tasks()
        at = take(pointer, 1)
        while at < a[11] * kv_heads:
            following = take(pointer, 1)
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
                    values[p] = a[3] + block * page
                    to = scores_at + 4 * PAGE * p
                    score(keys, rows, queries, head_dim * size, a[2] + block * page, words, to, values[p])
                # The greatest of all rows first: found one by one, each row would wait for its own.
                for r in range(rows):
                    low, high = seen(start + r // group - stretch, window, pages)
                    before[r] = most[r]
                    most[r] = max(before[r], _greatest(pages, scores_at + 4 * STRETCH * r, low, high, scale))
                for r in range(rows):
                    low, high = seen(start + r // group - stretch, window, pages)
                    own_weights, own_sums = weights_at + size * STRETCH * r, sums_at + 4 * LANES * r
                    own_scores = scores_at + 4 * STRETCH * r
                    _soften(keys, pages, own_scores, own_weights, own_sums, low, high, scale, before[r], most[r])
                    if most[r] > before[r]:
                        scale_lines(result_at + 4 * width * r, width // LANES, exp(before[r] - most[r]))
                for p in range(pages):
                    if stretch + STRETCH + p * PAGE < end:
                        block = table[(stretch + STRETCH) // PAGE + p] * kv_heads + head
                    else:
                        block = page_of(a, following, p)
                    later[p] = a[2] + block * page
                pages_at, later_at = values.ctypes.data, later.ctypes.data
                weigh(keys, words, rows, weights_at, STRETCH * size, pages_at, pages, width, result_at, later_at)
            for r in range(rows):
                target = output[(first_row + r // group) * out_stride + (head * group + r % group) * head_dim :]
                total = np.float32(0)
                for j in range(r * LANES, (r + 1) * LANES):
                    total += sums[j]
                for d in range(head_dim):
                    store(target, d, result[r * width + d] / total)
            at = following
        end_tasks()

    return run


@compiled
def seen(position: Any, window: Any, pages: Any) -> Any:
    """What of a stretch's `pages` a position sees, counted from the stretch's beginning: from, to."""
    low, high = max(position + 1 - window, 0) if window > 0 else 0, min(max(position + 1, 0), pages * PAGE)
    return min(low, high), high


@compiled
def _greatest(pages: Any, scores: Any, begin: Any, end: Any, scale: Any) -> Any:
    """Of as many pages as there are: nobody sees what lies behind them."""
    if pages == 1:
        return _greatest_one(scores, begin, end, scale)
    if pages == 2:
        return _greatest_two(scores, begin, end, scale)
    if pages == 3:
        return _greatest_three(scores, begin, end, scale)
    return _greatest_four(scores, begin, end, scale)


@compiled
def _soften(  # type: ignore[no-untyped-def]
    like, pages, scores, weights, sums, begin, end, scale, before, most
):
    if pages == 1:
        _soften_one(like, scores, weights, sums, begin, end, scale, before, most)
    elif pages == 2:
        _soften_two(like, scores, weights, sums, begin, end, scale, before, most)
    elif pages == 3:
        _soften_three(like, scores, weights, sums, begin, end, scale, before, most)
    else:
        _soften_four(like, scores, weights, sums, begin, end, scale, before, most)


@compiled
def _score(like: Any, rows: Any, queries: Any, stride: Any, page: Any, words: Any, to: Any, ahead: Any) -> None:
    _score_page(like, rows, queries, stride, page, 4 * PAGE, words, to, 4 * STRETCH, 0, ahead, 4 * PAGE)


@compiled
def _weigh(  # type: ignore[no-untyped-def]
    like, _, rows, weights, stride, pages, count, width, out, later
):
    """out[rows, width] += weights · pages, whose addresses are at `pages`; at `later` those of pages of keys that are
    asked for meanwhile.
    """
    values, keys, pack = carray(as_i64(pages), count), carray(as_i64(later), count), pack_of(like)
    for p in range(count):
        at, row = 0, weights + PAGE // pack * 4 * p
        while at + 4 * LANES <= width:
            place, ahead = values[p] + 4 * at, keys[p] + 4 * at * PAGE // pack
            _weigh_four(
                like, rows, row, stride, place, 4 * width, PAGE // pack, out + 4 * at, 4 * width, 1, ahead, 16 * LANES
            )
            at += 4 * LANES
        while at < width:
            place = values[p] + 4 * at
            _weigh_one(like, rows, row, stride, place, 4 * width, PAGE // pack, out + 4 * at, 4 * width, 1, place, 0)
            at += LANES


@compiled
def _score_tiles(like: Any, rows: Any, queries: Any, stride: Any, page: Any, words: Any, to: Any, ahead: Any) -> None:
    """Where a head is whole steps; elsewhere as without tiles, in both products."""
    if words % amx.STEP == 0:
        amx.score(rows, queries, stride, page, 4 * PAGE, words, to, 4 * STRETCH, ahead)
    else:
        _score(like, rows, queries, stride, page, words, to, ahead)


@compiled
def _weigh_tiles(  # type: ignore[no-untyped-def]
    like, head, rows, weights, stride, pages, count, width, out, later
):
    """`head`: words of one."""
    if head % amx.STEP == 0:
        amx.weigh(rows, weights, stride, pages, count, width, out, later)
    else:
        _weigh(like, head, rows, weights, stride, pages, count, width, out, later)


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
