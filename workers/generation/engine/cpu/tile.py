"""The inner loops that the kernels share, above all a few rows times a panel; spelled in LLVM's language, for numba
cannot be told which numbers to keep in vector registers.

A row is 32-bit words: one fp32 number each, or two bf16 numbers that meet the same two of the panel. For each word of
the rows the panel holds `vectors` times 16 words. So a step is a broadcast and a fused multiply-add, or bf16's product
of pairs (`vdpbf16ps` where the processor has it). Words may also be four numbers of 8 bits, signed in the rows and
unsigned in the panel (`vpdpbusd`); what they sum up to is whole, and times the fp32 number before the row.
"""

from itertools import product
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, overload

from workers.generation.engine.cpu.scalar import compiled
from workers.generation.engine.cpu.vectors import (
    BYTES,
    FEATURES,
    FLOATS,
    HAS_PAIRS,
    KIND,
    LANES,
    LINE,
    LONG,
    WORD,
    WORDS,
    BFloat,
    at_offset,
    prefetch,
    spread,
)

MOST = 6  # rows of a tile: 6 · 4 totals and 4 lines fill the 32 registers of AVX-512
RANKS = 4  # lines of `dots`
PANEL = 4 * LANES  # outputs that a product computes at a time
HAS_BYTES = "+avx512vnni" in FEATURES


def _fma(builder: Any, one: Any, other: Any, total: Any) -> Any:
    fma = get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), "llvm.fma.v16f32")
    return builder.call(fma, [one, other, total])


def _multiply_add(builder: Any, row: Any, line: Any, total: Any) -> Any:
    return _fma(builder, builder.bitcast(row, FLOATS), builder.bitcast(line, FLOATS), total)


def _multiply_add_pairs(builder: Any, row: Any, line: Any, total: Any) -> Any:
    if HAS_PAIRS:
        pairs = ir.VectorType(BFloat(), 2 * LANES)
        kind = ir.FunctionType(FLOATS, [FLOATS, pairs, pairs])
        dot = get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
        return builder.call(dot, [total, builder.bitcast(row, pairs), builder.bitcast(line, pairs)])
    # The upper numbers first, as the instruction does: the same bits.
    shift, upper = ir.Constant(WORDS, [16] * LANES), ir.Constant(WORDS, [0xFFFF0000] * LANES)
    total = _multiply_add(builder, builder.and_(row, upper), builder.and_(line, upper), total)
    return _multiply_add(builder, builder.shl(row, shift), builder.shl(line, shift), total)


def _multiply_add_bytes(builder: Any, row: Any, line: Any, total: Any) -> Any:
    if HAS_BYTES:
        kind = ir.FunctionType(WORDS, [WORDS] * 3)
        dot = get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
        return builder.call(dot, [total, line, row])
    for at in range(0, 32, 8):
        own = builder.ashr(builder.shl(row, ir.Constant(WORDS, [24 - at] * LANES)), ir.Constant(WORDS, [24] * LANES))
        other = builder.and_(builder.lshr(line, ir.Constant(WORDS, [at] * LANES)), ir.Constant(WORDS, [255] * LANES))
        total = builder.add(total, builder.mul(own, other))
    return total


STEPS = {
    "fp32": (_multiply_add, FLOATS),
    "bf16": (_multiply_add_pairs, FLOATS),
    "int8": (_multiply_add_bytes, WORDS),
}


def tile(rows: int, vectors: int, kind: str) -> Any:
    """`(row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride)`; strides in bytes.

    out `[rows, 16 · vectors]` fp32 = (out if `add`) + rows · panel. `ahead`: what is asked from memory meanwhile, in
    the panel's form.
    """
    step, sums = STEPS[kind]
    places = list(product(range(rows), range(vectors)))

    def codegen(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride = arguments
        row, panel, out, ahead = (builder.inttoptr(address, BYTES) for address in (row, panel, out, ahead))
        outs = [
            at_offset(builder, out, builder.add(builder.mul(LONG(r), out_stride), LONG(LINE * v)), FLOATS)
            for r, v in places
        ]
        keep = builder.icmp_signed("!=", add, LONG(0))

        def before() -> list[Any]:
            zero = ir.Constant(FLOATS, [0.0] * LANES)
            return [builder.select(keep, builder.load(at, align=4), zero) for at in outs]

        starts = before() if sums is FLOATS else [ir.Constant(sums, [0] * LANES)] * len(places)
        entry, loop, end = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("end")
        builder.branch(loop)

        builder.position_at_end(loop)
        word = builder.phi(LONG)
        totals = [builder.phi(sums) for _ in places]
        offsets = [builder.add(builder.mul(word, panel_stride), LONG(LINE * v)) for v in range(vectors)]
        # Into the second-level cache: on its way into the first it would keep the lines waiting that are needed now.
        for v in range(vectors):
            wanted = builder.add(builder.mul(word, ahead_stride), LONG(LINE * v))
            prefetch(builder, builder.gep(ahead, [wanted]), 2)
        lines = [builder.load(at_offset(builder, panel, offset, WORDS), align=4) for offset in offsets]
        ats = [builder.add(builder.mul(LONG(r), row_stride), builder.mul(word, LONG(4))) for r in range(rows)]
        own = [spread(builder, builder.load(at_offset(builder, row, at, WORD), align=4)) for at in ats]
        after = [step(builder, own[r], lines[v], total) for (r, v), total in zip(places, totals, strict=True)]
        following = builder.add(word, LONG(1))
        builder.cbranch(builder.icmp_signed("<", following, words), loop, end)
        word.add_incoming(LONG(0), entry)
        word.add_incoming(following, loop)
        for total, first, last in zip(totals, starts, after, strict=True):
            total.add_incoming(first, entry)
            total.add_incoming(last, loop)

        builder.position_at_end(end)
        if sums is not FLOATS:
            fronts = [builder.sub(builder.mul(LONG(r), row_stride), LONG(4)) for r in range(rows)]
            scales = [spread(builder, builder.load(at_offset(builder, row, at, WORD), align=4)) for at in fronts]
            scales = [builder.bitcast(scale, FLOATS) for scale in scales]
            after = [
                _fma(builder, scales[r], builder.sitofp(last, FLOATS), first)
                for (r, _), last, first in zip(places, after, before(), strict=True)
            ]
        for at, last in zip(outs, after, strict=True):
            builder.store(last, at, align=4)

    @intrinsic
    def run(  # type: ignore[no-untyped-def]
        _, row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride
    ):
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codegen(context, builder, signature, arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), generate

    return run


def dots(kind: str) -> Any:
    """`(row, lines, stride, words, out)`: out[RANKS] fp32 = row · each of RANKS lines; `words` a multiple of LANES."""
    step, _ = STEPS[kind]

    @intrinsic
    def run(_: Any, row: Any, lines: Any, stride: Any, words: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            row, lines, stride, words, out = arguments
            row, lines = builder.inttoptr(row, BYTES), builder.inttoptr(lines, BYTES)
            out = builder.inttoptr(out, ir.FloatType().as_pointer())
            starts = [builder.gep(lines, [builder.mul(LONG(line), stride)]) for line in range(RANKS)]
            entry, loop, end = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("end")
            builder.branch(loop)

            builder.position_at_end(loop)
            at, totals = builder.phi(LONG), [builder.phi(FLOATS) for _ in starts]
            own = builder.load(at_offset(builder, row, at, WORDS), align=4)
            others = [builder.load(at_offset(builder, start, at, WORDS), align=4) for start in starts]
            after = [step(builder, own, other, total) for other, total in zip(others, totals, strict=True)]
            following = builder.add(at, LONG(LINE))
            builder.cbranch(builder.icmp_signed("<", following, builder.mul(words, LONG(4))), loop, end)
            at.add_incoming(LONG(0), entry)
            at.add_incoming(following, loop)
            for total, last in zip(totals, after, strict=True):
                total.add_incoming(ir.Constant(FLOATS, [0.0] * LANES), entry)
                total.add_incoming(last, loop)

            builder.position_at_end(end)
            kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), FLOATS])
            add = get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fadd.v16f32")
            for line, last in enumerate(after):
                total = builder.call(add, [ir.Constant(ir.FloatType(), 0.0), last], fastmath=["reassoc"])
                builder.store(total, builder.gep(out, [LONG(line)]))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), codegen

    return run


def _rows(vectors: int, kind: str) -> Any:
    """Any number of rows, as few tiles."""
    six, five, four, three, two, one = (tile(rows, vectors, kind) for rows in range(MOST, 0, -1))

    @compiled
    def run(  # type: ignore[no-untyped-def]
        rows, row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride
    ):
        while rows >= MOST:
            six(row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride)
            row, out, rows = row + MOST * row_stride, out + MOST * out_stride, rows - MOST
        if rows == 5:
            five(row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride)
        elif rows == 4:
            four(row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride)
        elif rows == 3:
            three(row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride)
        elif rows == 2:
            two(row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride)
        elif rows == 1:
            one(row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride)

    return run


def family(vectors: int) -> Any:
    """`multiply(like, rows, …)`, then as `tile`: `like` is an array of the kind of numbers that rows and panel hold."""
    of_kind = {kind: _rows(vectors, kind) for kind in STEPS}

    def multiply(  # type: ignore[no-untyped-def]
        like, rows, row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride
    ):
        raise NotImplementedError

    @overload(multiply, inline="always")
    def chosen(  # type: ignore[no-untyped-def]
        like, rows, row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride
    ):
        product = of_kind[KIND[like.dtype]]

        def run(  # type: ignore[no-untyped-def]
            like, rows, row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride
        ):
            product(rows, row, row_stride, panel, panel_stride, words, out, out_stride, add, ahead, ahead_stride)

        return run

    return multiply


def dots_of_kind() -> Any:
    """`dot(like, row, lines, stride, words, out)`: `dots` for the kind of numbers that `like` holds."""
    of_kind = {kind: dots(kind) for kind in ("fp32", "bf16")}

    def dot(like: Any, row: Any, lines: Any, stride: Any, words: Any, out: Any) -> None:
        raise NotImplementedError

    @overload(dot, inline="always")
    def chosen(like: Any, row: Any, lines: Any, stride: Any, words: Any, out: Any) -> Any:
        product = of_kind[KIND[like.dtype]]

        def run(like: Any, row: Any, lines: Any, stride: Any, words: Any, out: Any) -> None:
            product(row, lines, stride, words, out)

        return run

    return dot


MULTIPLY = {vectors: family(vectors) for vectors in (1, 2, 4)}
DOT = dots_of_kind()
