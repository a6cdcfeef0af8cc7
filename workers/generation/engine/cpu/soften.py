"""Scores of one query into softmax weights, a stretch of positions at a time, spelled in LLVM's language: numba's own
loops take six times as long over it, and it would be the greater part of attention.
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, overload

from workers.generation.engine.cpu.scalar import LOG2_E, POWERS
from workers.generation.engine.cpu.vectors import (
    BYTES,
    FLOATS,
    KIND,
    LANES,
    LONG,
    WORD,
    WORDS,
    all_of,
    load_line,
    spread,
    store_line,
)

LEAST = -3.0e38
SMALLEST = -126.0  # an exponent of 2 below it would not be a normal number


class Row:
    """A row of `vectors · LANES` fp32 scores: its `lines`, and which lanes are `seen`, those in `[begin, end)`."""

    def __init__(self, builder: Any, vectors: int, scores: Any, begin: Any, end: Any) -> None:
        self.builder = builder
        first = spread(builder, builder.trunc(begin, WORD))
        count = spread(builder, builder.trunc(builder.sub(end, begin), WORD))
        base, self.seen, self.lines = builder.inttoptr(scores, BYTES), [], []
        for v in range(vectors):
            lanes = ir.Constant(WORDS, list(range(v * LANES, (v + 1) * LANES)))
            self.seen.append(builder.icmp_unsigned("<", builder.sub(lanes, first), count))
            self.lines.append(load_line(builder, base, LONG(v), "fp32"))

    def call(self, name: str, *given: Any, result: Any = FLOATS) -> Any:
        kind = ir.FunctionType(result, [each.type for each in given])
        return self.builder.call(get_or_insert_function(self.builder.module, kind, name), given)

    def larger(self, one: Any, other: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered(">", one, other), one, other)

    def add(self, one: Any, other: Any) -> Any:
        """In this order: numba lets the compiler choose another, and may for one number of vectors only."""
        return self.call("llvm.arithmetic.fence.v16f32", self.builder.fadd(one, other))

    def power(self, exponents: Any) -> Any:
        """2 to them."""
        builder = self.builder
        exponents = self.larger(exponents, all_of(FLOATS, SMALLEST))
        whole = self.call("llvm.floor.v16f32", exponents)
        part = builder.fsub(exponents, whole)
        result = all_of(FLOATS, POWERS[0])
        for factor in POWERS[1:]:
            result = self.call("llvm.fma.v16f32", result, part, all_of(FLOATS, factor))
        # By its exponent: nothing rounds, and no product is there to be joined with a sum that follows.
        more = builder.shl(builder.fptosi(whole, WORDS), all_of(WORDS, 23))
        return builder.bitcast(builder.add(builder.bitcast(result, WORDS), more), FLOATS)


def pairwise(join: Any, lines: list[Any]) -> Any:
    """As a tree, so that lines of nothing at the end change nothing."""
    while len(lines) > 1:
        lines = [join(*lines[i : i + 2]) if i + 1 < len(lines) else lines[i] for i in range(0, len(lines), 2)]
    return lines[0]


def greatest(vectors: int) -> Any:
    """`(scores, begin, end, scale)`: the greatest score · scale of a row; LEAST, if it has none."""

    @intrinsic
    def run(_: Any, scores: Any, begin: Any, end: Any, scale: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            scores, begin, end, scale = arguments
            row = Row(builder, vectors, scores, begin, end)
            factor, least = spread(builder, scale), all_of(FLOATS, LEAST)
            scaled = [builder.fmul(line, factor) for line in row.lines]
            masked = [builder.select(seen, line, least) for seen, line in zip(row.seen, scaled, strict=True)]
            most = pairwise(row.larger, masked)
            return row.call("llvm.vector.reduce.fmax.v16f32", most, result=ir.FloatType())

        return types.float32(*[types.int64] * 3, types.float32), codegen

    return run


def soften(vectors: int, kind: str) -> Any:
    """`(scores, weights, sums, begin, end, scale, before, most)`: one row of `vectors · LANES` fp32 scores.

    Positions outside `[begin, end)` weigh 0, the others e^(score · scale − most). Weights are stored as numbers of
    `kind` and added, lane by lane, to `sums` `[LANES]` times e^(before − most).
    """

    def codegen(builder: Any, arguments: Any) -> None:
        scores, weights, sums, begin, end, scale, before, most = arguments
        row = Row(builder, vectors, scores, begin, end)
        weights, sums = builder.inttoptr(weights, BYTES), builder.inttoptr(sums, FLOATS.as_pointer())
        center, log2_e = spread(builder, most), all_of(FLOATS, LOG2_E)
        factor, low = spread(builder, scale), builder.fneg(center)
        parts = []
        for v, line in enumerate(row.lines):
            exponents = builder.fmul(row.call("llvm.fma.v16f32", line, factor, low), log2_e)
            weight = row.power(builder.select(row.seen[v], exponents, all_of(FLOATS, SMALLEST)))
            weight = builder.select(row.seen[v], weight, all_of(FLOATS, 0.0))
            parts.append(weight)
            store_line(builder, weight, weights, LONG(v), kind)
        earlier = spread(builder, before)
        shrink = row.power(builder.fmul(builder.fsub(earlier, center), log2_e))
        # Exactly 1 where nothing greater came: whether a row meets a stretch that it sees nothing of depends on others.
        shrink = builder.select(builder.fcmp_ordered("==", earlier, center), all_of(FLOATS, 1.0), shrink)
        total = row.call("llvm.fma.v16f32", builder.load(sums, align=4), shrink, pairwise(row.add, parts))
        builder.store(total, sums, align=4)

    @intrinsic
    def run(  # type: ignore[no-untyped-def]
        _, scores, weights, sums, begin, end, scale, before, most
    ):
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codegen(builder, arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5, *[types.float32] * 3), generate

    return run


@intrinsic
def scale_lines(_: Any, address: Any, count: Any, factor: Any) -> Any:
    """`count` lines of LANES fp32 numbers, in place; numba would go one by one, for all it knows of other arrays."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, count, factor = arguments
        base = builder.inttoptr(address, BYTES)
        factor = spread(builder, factor)
        entry, loop, end = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("end")
        builder.branch(loop)
        builder.position_at_end(loop)
        at = builder.phi(LONG)
        store_line(builder, builder.fmul(load_line(builder, base, at, "fp32"), factor), base, at, "fp32")
        following = builder.add(at, LONG(1))
        builder.cbranch(builder.icmp_signed("<", following, count), loop, end)
        at.add_incoming(LONG(0), entry)
        at.add_incoming(following, loop)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), codegen


def of_kind(vectors: int) -> Any:
    """`soften` for the kind of numbers that its first argument, an array, holds."""
    made = {kind: soften(vectors, kind) for kind in ("fp32", "bf16")}

    def chosen(  # type: ignore[no-untyped-def]
        like, scores, weights, sums, begin, end, scale, before, most
    ):
        raise NotImplementedError

    @overload(chosen, inline="always")
    def _chosen(  # type: ignore[no-untyped-def]
        like, scores, weights, sums, begin, end, scale, before, most
    ):
        own = made[KIND[like.dtype]]

        def run(  # type: ignore[no-untyped-def]
            like, scores, weights, sums, begin, end, scale, before, most
        ):
            own(scores, weights, sums, begin, end, scale, before, most)

        return run

    return chosen
