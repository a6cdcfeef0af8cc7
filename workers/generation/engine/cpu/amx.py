"""Matrices of bf16 that the processor multiplies whole (AMX): 16 rows of 32 numbers, times 32 by 16, onto 16 by 16.

16 words of a page, 16 outputs wide, are such a matrix as they lie. Sums grow step by step in one order, however many
rows share the call. The instructions want the system's leave, once per process, and each thread's `configure` before.

Beside oneDNN: docs/decisions/0012-compiled-kernels-for-processors.md.
"""

import ctypes
import struct
from enum import Enum
from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.core import config
from numba.core.cgutils import get_or_insert_function, global_constant
from numba.extending import intrinsic

from workers.generation.engine.cpu.scalar import ALL, as_u32, compiled
from workers.generation.engine.cpu.vectors import BYTES, FEATURES, LINE, LONG, prefetch

TILE = 16  # rows of a tile
ROWS = 2 * TILE  # of a block of tiles
STEP = 16  # words
SMALL = ir.IntType(8)
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18
# Palette 1; all eight tiles have 16 rows of 64 bytes.
CONFIGURATION = struct.pack("<BB14x16H16B", 1, 0, *[LINE] * 8, *[0] * 8, *[TILE] * 8, *[0] * 8)


def _available() -> bool:
    return "+amx-bf16" in FEATURES and ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0


AVAILABLE = _available()
if "+amx-bf16" in FEATURES and not AVAILABLE:
    config.CACHE_DIR += "-without-tiles"  # numba knows the processor, not what the system lets us use


def _call(builder: Any, name: str, *arguments: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [each.type for each in arguments])
    builder.call(get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), arguments)


@intrinsic
def configure(_: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        constant = ir.Constant(ir.ArrayType(SMALL, LINE), bytearray(CONFIGURATION))
        _call(builder, "ldtilecfg", builder.bitcast(global_constant(builder.module, "tiles", constant), BYTES))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def release(_: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


class Panel(Enum):
    """How a block's second factor lies in memory."""

    LINES = "lines"  # of all its outputs, `panel_stride` bytes from one word's to the next
    LISTED = "listed"  # lines, but `panel` is where each step's address is, to which `more` is added
    TILES = "tiles"  # one tile after another, in the order in which they are read


def block(down: int, across: int, kind: Panel, asks: int = 0) -> Any:
    """`(row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, more, more_stride)`, as in `tile`,
    for TILE · down rows and TILE · across outputs, at most four tiles of sums; `words`: a multiple of STEP.

    `asks`: how many lines from `ahead` on are asked from memory per step (LISTED: `ahead` is where the step's address
    is). TILES are read again by the next rows, which themselves are not: they pass by the first-level cache. Meanwhile
    the lines are made ready that will be written when the sums are finished: `more`, and every `more_stride`.
    """
    left = [SMALL(4 + r) for r in range(down)]
    right = [SMALL(number) for number in range(4 + down, 8)]
    tiles, listed = kind is Panel.TILES, kind is Panel.LISTED

    def codegen(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, more, more_stride = arguments
        row, panel, out, ahead = (builder.inttoptr(address, BYTES) for address in (row, panel, out, ahead))

        def at(base: Any, step: Any, lines: int, line: int) -> Any:
            return builder.gep(base, [builder.add(builder.mul(step, LONG(lines)), LONG(line * LINE))])

        def of_step(addresses: Any) -> Any:
            place = builder.gep(addresses, [builder.udiv(builder.mul(word, LONG(8)), LONG(STEP))])
            return builder.inttoptr(builder.load(builder.bitcast(place, LONG.as_pointer())), BYTES)

        sums = [SMALL(number) for number in range(down * across)]
        outs = [at(out, out_stride, r * TILE, v) for r in range(down) for v in range(across)]
        with builder.if_else(builder.icmp_signed("!=", add, LONG(0))) as (onto, afresh):
            with onto:
                for total, place in zip(sums, outs, strict=True):
                    _call(builder, "tileloadd64", total, place, out_stride)
            with afresh:
                for total in sums:
                    _call(builder, "tilezero", total)
        entry, loop, end = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("end")
        builder.branch(loop)

        builder.position_at_end(loop)
        word = builder.phi(LONG)
        own = builder.gep(row, [builder.mul(word, LONG(4))])
        if listed:
            lines, wanted = builder.gep(of_step(panel), [more]), of_step(ahead)
        else:
            lines = builder.gep(panel, [builder.mul(word, LONG(LINE * across) if tiles else panel_stride)])
            wanted = builder.gep(ahead, [builder.mul(word, LONG(LINE * asks // STEP))])
        if tiles:
            first = builder.and_(builder.udiv(builder.mul(word, LONG(2)), LONG(STEP)), LONG(down * TILE - 1))
            for line in (first, builder.add(first, LONG(1))):
                target = builder.add(more, builder.mul(line, more_stride))
                prefetch(builder, builder.inttoptr(target, BYTES), write=True)
        for r in range(down):
            place = at(own, row_stride, r * TILE, 0)
            _call(builder, "tileloaddt164" if tiles else "tileloadd64", left[r], place, row_stride)
        for v in range(across):
            number = right[v % len(right)]
            if tiles:
                _call(builder, "tileloadd64", number, at(lines, LONG(LINE), 0, v * TILE), LONG(LINE))
            else:
                _call(builder, "tileloadd64", number, at(lines, panel_stride, 0, v), panel_stride)
            for line in range(v * asks // across, (v + 1) * asks // across):
                prefetch(builder, at(wanted, LONG(0), 0, line), level=2)
            for r in range(down):
                _call(builder, "tdpbf16ps", sums[r * across + v], left[r], number)
        following = builder.add(word, LONG(STEP))
        builder.cbranch(builder.icmp_signed("<", following, words), loop, end)
        word.add_incoming(LONG(0), entry)
        word.add_incoming(following, loop)

        builder.position_at_end(end)
        for total, place in zip(sums, outs, strict=True):
            _call(builder, "tilestored64", total, place, out_stride)
        return context.get_dummy_value()

    @intrinsic
    def run(  # type: ignore[no-untyped-def]
        _, row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, more, more_stride
    ):
        return types.void(*[types.int64] * 11), codegen

    return run


_narrow, _square = block(1, 2, Panel.LINES, asks=2 * STEP), block(2, 2, Panel.LINES)
_weigh_wide, _weigh_one = block(1, 4, Panel.LISTED), block(1, 1, Panel.LISTED)
_weigh_first = block(1, 4, Panel.LISTED, asks=4 * STEP)
_one_again, _two_again = (block(down, 2, Panel.TILES) for down in (1, 2))
_one_first, _two_first = (block(down, 2, Panel.TILES, asks=2 * STEP) for down in (1, 2))
AHEAD = 4 * STEP * LINE


@compiled
def times(  # type: ignore[no-untyped-def]
    rows, row, row_stride, tiles, words, out, out_stride, first, target, target_stride
):
    """At most ROWS rows, filled up to whole tiles, times TILES of 2 · TILE outputs. `first`: these come from memory.
    `target`: where finished sums will go.
    """
    if rows > TILE:
        if first:
            _two_first(row, row_stride, tiles, 0, words, out, out_stride, 0, tiles + AHEAD, target, target_stride)
        else:
            _two_again(row, row_stride, tiles, 0, words, out, out_stride, 0, 0, target, target_stride)
    elif first:
        _one_first(row, row_stride, tiles, 0, words, out, out_stride, 0, tiles + AHEAD, target, target_stride)
    else:
        _one_again(row, row_stride, tiles, 0, words, out, out_stride, 0, 0, target, target_stride)


@compiled
def score(
    rows: Any, row: Any, row_stride: Any, page: Any, stride: Any, words: Any, out: Any, line: Any, ahead: Any
) -> None:
    """Rows, filled up to whole tiles, times a page of 2 · TILE keys."""
    while rows > 0:
        if rows > TILE:
            _square(row, row_stride, page, stride, words, out, line, 0, ahead, 0, 0)
        else:
            _narrow(row, row_stride, page, stride, words, out, line, 0, ahead, 0, 0)
        row, out, rows = row + ROWS * row_stride, out + ROWS * line, rows - ROWS


@compiled
def weigh(rows: Any, row: Any, row_stride: Any, pages: Any, count: Any, width: Any, out: Any, ahead: Any) -> None:
    """out `[rows, width]` += rows, filled up to whole tiles, times `count` pages of values of 2 · STEP positions each.

    `pages` and `ahead`: where their addresses are, and those of as many pages of which the first 4 · STEP lines are
    asked for meanwhile, if `width` is four tiles at least. `width`: whole tiles.
    """
    words, stride, first = count * STEP, 4 * width, True
    while rows > 0:
        at = 0
        while at + 4 * TILE <= width:
            if first:
                _weigh_first(row, row_stride, pages, stride, words, out + 4 * at, stride, 1, ahead, 4 * at, 0)
            else:
                _weigh_wide(row, row_stride, pages, stride, words, out + 4 * at, stride, 1, ahead, 4 * at, 0)
            at, first = at + 4 * TILE, False
        while at < width:
            _weigh_one(row, row_stride, pages, stride, words, out + 4 * at, stride, 1, ahead, 4 * at, 0)
            at += TILE
        row, out, rows = row + TILE * row_stride, out + TILE * stride, rows - TILE


@compiled
def fill(rows: Any, row: Any, words: Any, spare: Any, padded: Any) -> None:
    """Copy rows of `words` words into `spare`, lines of `padded`, with zeros past them."""
    own, to = carray(as_u32(row), ALL), carray(as_u32(spare), ALL)
    for r in range(rows):
        for k in range(words):
            to[r * padded + k] = own[r * words + k]
        for k in range(words, padded):
            to[r * padded + k] = 0
