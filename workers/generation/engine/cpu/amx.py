"""Matrices of bf16 that the processor multiplies whole (AMX): 16 rows of 32 numbers, times 32 by 16, onto 16 by 16.

16 words of a panel, 16 outputs wide, are such a matrix as they lie. Sums grow step by step in one order, however many
rows share the call. The instructions want the system's leave, once per process, and each thread's `configure` before.

Beside oneDNN: docs/decisions/0012-compiled-kernels-for-processors.md.
"""

import ctypes
import struct
from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.core import config
from numba.core.cgutils import get_or_insert_function, global_constant
from numba.extending import intrinsic

from workers.generation.engine.cpu.scalar import ALL, as_u32, compiled
from workers.generation.engine.cpu.tile import BYTES, FEATURES, LINE, LONG, PANEL, prefetch

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


def block(down: int, across: int, asks: bool = True) -> Any:
    """`(row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride)`, as `tile` has it, for
    TILE · down rows and TILE · across outputs, at most four tiles of sums; `words`: a multiple of STEP. `asks`: whether
    `ahead` is asked from memory.
    """
    left = [SMALL(4 + r) for r in range(down)]
    right = [SMALL(number) for number in range(4 + down, 8)]

    def codegen(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride = arguments
        row, panel, out, ahead = (builder.inttoptr(address, BYTES) for address in (row, panel, out, ahead))

        def at(base: Any, step: Any, lines: int, line: int) -> Any:
            return builder.gep(base, [builder.add(builder.mul(step, LONG(lines)), LONG(line * LINE))])

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
        own, lines = (
            builder.gep(row, [builder.mul(word, LONG(4))]),
            builder.gep(panel, [builder.mul(word, panel_stride)]),
        )
        wanted = builder.gep(ahead, [builder.mul(word, ahead_stride)])
        for r in range(down):
            _call(builder, "tileloadd64", left[r], at(own, row_stride, r * TILE, 0), row_stride)
        for v in range(across):
            _call(builder, "tileloadd64", right[v % len(right)], at(lines, panel_stride, 0, v), panel_stride)
            for line in range(STEP if asks else 0):
                prefetch(builder, at(wanted, ahead_stride, line, v))
            for r in range(down):
                _call(builder, "tdpbf16ps", sums[r * across + v], left[r], right[v % len(right)])
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
        _, row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride
    ):
        return types.void(*[types.int64] * 10), codegen

    return run


_wide, _narrow, _square = block(1, 4), block(1, 2), block(2, 2)
_weigh_wide, _weigh_one = block(1, 4, asks=False), block(1, 1, asks=False)
LINES = 4 * PANEL  # bytes of a panel per word of the rows
SIDE = LINES // 2


@compiled
def times(
    half: Any, rows: Any, row: Any, row_stride: Any, panel: Any, words: Any, out: Any, ahead: Any, step: Any
) -> None:
    """At most ROWS rows, filled up to whole tiles, times a panel or half of one."""
    if rows > TILE:
        _square(row, row_stride, panel, LINES, words, out, LINES, 0, ahead, step)
        if not half:
            _square(row, row_stride, panel + SIDE, LINES, words, out + SIDE, LINES, 0, ahead + SIDE, step)
    elif half:
        _narrow(row, row_stride, panel, LINES, words, out, LINES, 0, ahead, step)
    else:
        _wide(row, row_stride, panel, LINES, words, out, LINES, 0, ahead, step)


@compiled
def score(
    rows: Any, row: Any, row_stride: Any, page: Any, stride: Any, words: Any, out: Any, line: Any, ahead: Any
) -> None:
    """Rows, filled up to whole tiles, times a page of 2 · TILE keys."""
    while rows > 0:
        if rows > TILE:
            _square(row, row_stride, page, stride, words, out, line, 0, ahead, stride)
        else:
            _narrow(row, row_stride, page, stride, words, out, line, 0, ahead, stride)
        row, out, rows = row + ROWS * row_stride, out + ROWS * line, rows - ROWS


@compiled
def weigh(rows: Any, row: Any, row_stride: Any, page: Any, width: Any, words: Any, out: Any) -> None:
    """out `[rows, width]` += rows, filled up to whole tiles, times a page of values; `width`: whole tiles."""
    while rows > 0:
        at = 0
        while at + 4 * TILE <= width:
            _weigh_wide(row, row_stride, page + 4 * at, 4 * width, words, out + 4 * at, 4 * width, 1, 0, 0)
            at += 4 * TILE
        while at < width:
            _weigh_one(row, row_stride, page + 4 * at, 4 * width, words, out + 4 * at, 4 * width, 1, 0, 0)
            at += TILE
        row, out, rows = row + TILE * row_stride, out + TILE * 4 * width, rows - TILE


@compiled
def fill(rows: Any, row: Any, words: Any, spare: Any, padded: Any) -> None:
    """Copy rows of `words` words into `spare`, lines of `padded`, with zeros past them."""
    own, to = carray(as_u32(row), ALL), carray(as_u32(spare), ALL)
    for r in range(rows):
        for k in range(words):
            to[r * padded + k] = own[r * words + k]
        for k in range(words, padded):
            to[r * padded + k] = 0
