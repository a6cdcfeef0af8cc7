"""What a product does with its sums: adds bias and residual, and rounds."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from workers.generation.engine.cpu.scalar import compiled, load, store, typed
from workers.generation.engine.cpu.tile import (
    BYTES,
    FLOATS,
    KIND,
    LANES,
    LINE,
    LONG,
    WORDS,
    all_of,
    at_offset,
    in_bf16,
)


@compiled
def finish(x: Any, a: Any, out: Any, own: Any, place: Any, column: Any) -> None:
    """A row's sums in one panel, plus bias and onto, into `out` at `place`; `a`: see `product`."""
    width = len(own)
    target = out[place : place + width]
    if a[8] != 0:
        added = typed(x, a[8])[column : column + width]
        for j in range(width):
            own[j] += load(added[j])
    if a[9] != 0:
        onto = typed(out, a[9])[place : place + width]
        for j in range(width):
            own[j] += load(onto[j])
    for j in range(width):
        store(target, j, own[j])


def _lines(vectors: int, kind: str) -> Any:
    """`(sums, bias, onto, out)`: one row of 16 · vectors fp32 sums, plus bias and onto (addresses, 0 for none; both of
    bf16, but onto fp32 where `kind` is) into numbers of `kind`.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, bias, onto, out = arguments
        entry = builder.block
        totals = [
            builder.load(at_offset(builder, builder.inttoptr(sums, BYTES), LONG(LINE * v), FLOATS), align=4)
            for v in range(vectors)
        ]
        for address, size in ((bias, 2), (onto, 4 if kind == "fp32" else 2)):
            add, after = builder.append_basic_block("add"), builder.append_basic_block("after")
            builder.cbranch(builder.icmp_signed("!=", address, LONG(0)), add, after)
            builder.position_at_end(add)
            base, more = builder.inttoptr(address, BYTES), []
            for v, total in enumerate(totals):
                own = ir.VectorType(ir.IntType(16), LANES) if size == 2 else FLOATS
                line = builder.load(at_offset(builder, base, LONG(LANES * size * v), own), align=2)
                if size == 2:
                    line = builder.bitcast(builder.shl(builder.zext(line, WORDS), all_of(WORDS, 16)), FLOATS)
                more.append(builder.fadd(total, line))
            builder.branch(after)
            builder.position_at_end(after)
            joined = []
            for total, sum_ in zip(totals, more, strict=True):
                phi = builder.phi(FLOATS)
                phi.add_incoming(total, entry)
                phi.add_incoming(sum_, add)
                joined.append(phi)
            totals, entry = joined, after
        for v, total in enumerate(totals):
            stored, size = (total, 4) if kind == "fp32" else (in_bf16(builder, total), 2)
            place = at_offset(builder, builder.inttoptr(out, BYTES), LONG(LANES * size * v), stored.type)
            builder.store(stored, place, align=2)
        return context.get_dummy_value()

    @intrinsic
    def run(_: Any, sums: Any, bias: Any, onto: Any, out: Any) -> Any:
        return types.void(*[types.int64] * 4), codegen

    return run


_WHOLE = {kind: (_lines(4, kind), _lines(2, kind)) for kind in ("fp32", "bf16")}


def finish_whole(x: Any, out: Any, a: Any, half: Any, sums: Any, place: Any, column: Any) -> Any:
    """As `finish`, but of a whole panel or half of one, in a few instructions; False where there is nothing for `x`."""
    raise NotImplementedError


@overload(finish_whole, inline="always")
def _finish_whole(x: Any, out: Any, a: Any, half: Any, sums: Any, place: Any, column: Any) -> Any:
    four, two = _WHOLE[KIND[out.dtype]]
    size = out.dtype.bitwidth // 8

    def by_lines(x: Any, out: Any, a: Any, half: Any, sums: Any, place: Any, column: Any) -> Any:
        bias = a[8] + 2 * column if a[8] != 0 else 0
        onto = a[9] + size * place if a[9] != 0 else 0
        if half:
            two(sums, bias, onto, a[3] + size * place)
        else:
            four(sums, bias, onto, a[3] + size * place)
        return True

    def not_at_all(x: Any, out: Any, a: Any, half: Any, sums: Any, place: Any, column: Any) -> Any:
        return False

    return by_lines if x.dtype == types.uint16 else not_at_all
