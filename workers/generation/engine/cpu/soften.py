"""Scores of one query into softmax weights, a stretch of positions at a time, spelled in LLVM's language: numba's own
loops take six times as long over it, and it would be the greater part of attention.
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, overload

from workers.generation.engine.cpu.scalar import LOG2_E, POWERS
from workers.generation.engine.cpu.tile import BYTES, FLOATS, KIND, LANES, LINE, LONG, WORD, WORDS, all_of, in_bf16

LEAST = -3.0e38
SMALLEST = -126.0  # an exponent of 2 below it would not be a normal number


def soften(vectors: int, kind: str) -> Any:
    """`(scores, weights, sums, begin, end, scale, before) → most`: one row of `vectors · LANES` fp32 scores.

    Positions outside `[begin, end)` weigh 0, the others e^(score · scale − most), where `most` is the greatest of
    `before` and all of them. Weights are stored as numbers of `kind` and added, lane by lane, to `sums` `[LANES]` times
    e^(before − most).
    """

    def codegen(builder: Any, arguments: Any) -> Any:
        def call(name: str, *given: Any, result: Any = FLOATS) -> Any:
            function = get_or_insert_function(
                builder.module, ir.FunctionType(result, [each.type for each in given]), name
            )
            return builder.call(function, given)

        def spread(value: Any, kind: Any) -> Any:
            first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, WORD(0))
            return builder.shuffle_vector(first, first, all_of(WORDS, 0))

        def larger(one: Any, other: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", one, other), one, other)

        def power(exponents: Any) -> Any:
            exponents = larger(exponents, all_of(FLOATS, SMALLEST))
            whole = call("llvm.floor.v16f32", exponents)
            part = builder.fsub(exponents, whole)
            result = all_of(FLOATS, POWERS[0])
            for factor in POWERS[1:]:
                result = call("llvm.fma.v16f32", result, part, all_of(FLOATS, factor))
            bits = builder.shl(builder.add(builder.fptosi(whole, WORDS), all_of(WORDS, 127)), all_of(WORDS, 23))
            return builder.fmul(result, builder.bitcast(bits, FLOATS))

        scores, weights, sums, begin, end, scale, before = arguments
        scores, weights = builder.inttoptr(scores, BYTES), builder.inttoptr(weights, BYTES)
        sums = builder.inttoptr(sums, FLOATS.as_pointer())
        first = spread(builder.trunc(begin, WORD), WORDS)
        count = spread(builder.trunc(builder.sub(end, begin), WORD), WORDS)
        factor = spread(scale, FLOATS)
        seen, lines = [], []
        for v in range(vectors):
            lanes = ir.Constant(WORDS, list(range(v * LANES, (v + 1) * LANES)))
            at = builder.bitcast(builder.gep(scores, [LONG(LINE * v)]), FLOATS.as_pointer())
            seen.append(builder.icmp_unsigned("<", builder.sub(lanes, first), count))
            scaled = builder.fmul(builder.load(at, align=4), factor)
            lines.append(builder.select(seen[v], scaled, all_of(FLOATS, LEAST)))
        tops = list(lines)
        while len(tops) > 1:
            tops = [larger(*tops[i : i + 2]) if i + 1 < len(tops) else tops[i] for i in range(0, len(tops), 2)]
        one = ir.FloatType()
        most = call("llvm.vector.reduce.fmax.v16f32", tops[0], result=one)
        most = builder.select(builder.fcmp_ordered(">", most, before), most, before)
        center, log2_e = spread(most, FLOATS), all_of(FLOATS, LOG2_E)
        size = 4 if kind == "fp32" else 2
        parts = []
        for v, line in enumerate(lines):
            weight = power(builder.fmul(builder.fsub(line, center), log2_e))
            weight = builder.select(seen[v], weight, all_of(FLOATS, 0.0))
            parts.append(weight)
            stored = weight if kind == "fp32" else in_bf16(builder, weight)
            at = builder.bitcast(builder.gep(weights, [LONG(LANES * size * v)]), stored.type.as_pointer())
            builder.store(stored, at, align=2)
        while len(parts) > 1:
            parts = [
                builder.fadd(*parts[i : i + 2]) if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)
            ]
        earlier = spread(before, FLOATS)
        shrink = power(builder.fmul(builder.fsub(earlier, center), log2_e))
        # Exactly 1 where nothing greater came: whether a row meets a stretch that it sees nothing of depends on others.
        shrink = builder.select(builder.fcmp_ordered("==", earlier, center), all_of(FLOATS, 1.0), shrink)
        builder.store(call("llvm.fma.v16f32", builder.load(sums, align=4), shrink, parts[0]), sums, align=4)
        return most

    @intrinsic
    def run(_: Any, scores: Any, weights: Any, sums: Any, begin: Any, end: Any, scale: Any, before: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return codegen(builder, arguments)

        return types.float32(*[types.int64] * 5, types.float32, types.float32), generate

    return run


def of_kind(vectors: int) -> Any:
    """`soften` for the kind of numbers that its first argument, an array, holds."""
    made = {kind: soften(vectors, kind) for kind in ("fp32", "bf16")}

    def chosen(like: Any, scores: Any, weights: Any, sums: Any, begin: Any, end: Any, scale: Any, before: Any) -> Any:
        raise NotImplementedError

    @overload(chosen, inline="always")
    def _chosen(like: Any, scores: Any, weights: Any, sums: Any, begin: Any, end: Any, scale: Any, before: Any) -> Any:
        own = made[KIND[like.dtype]]

        def run(like: Any, scores: Any, weights: Any, sums: Any, begin: Any, end: Any, scale: Any, before: Any) -> Any:
            return own(scores, weights, sums, begin, end, scale, before)

        return run

    return chosen
