"""What a product does with its sums: adds bias and residual, and rounds."""

from typing import Any

from numba import carray, types
from numba.extending import intrinsic, overload

from workers.generation.engine.cpu.scalar import as_f32, compiled, load, store, typed
from workers.generation.engine.cpu.tile import PANEL
from workers.generation.engine.cpu.vectors import BYTES, FLOATS, KIND, LONG, load_line, store_line

STRIDE = 4 * PANEL  # bytes from a row's sums to the next one's


@compiled
def _by_numbers(x: Any, out: Any, a: Any, rows: Any, width: Any, sums: Any, first: Any, column: Any) -> None:
    for r in range(rows):
        place, own = (first + r) * a[5] + column, carray(as_f32(sums + r * STRIDE), width)
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
    """`(rows, sums, bias, onto, out, stride)`: rows of 16 · vectors fp32 sums, plus bias and onto (addresses, 0 for
    none; both of bf16, but onto fp32 where `kind` is) into numbers of `kind`. `stride`: bytes from a row of `out`, and
    of `onto`, to the next.
    """

    def plus(builder: Any, totals: list[Any], address: Any, wanted: Any, kind: str) -> list[Any]:
        entry, add, after = builder.block, builder.append_basic_block("add"), builder.append_basic_block("after")
        builder.cbranch(wanted, add, after)
        builder.position_at_end(add)
        base = builder.inttoptr(address, BYTES)
        more = [builder.fadd(total, load_line(builder, base, LONG(v), kind)) for v, total in enumerate(totals)]
        builder.branch(after)
        builder.position_at_end(after)
        joined = []
        for total, sum_ in zip(totals, more, strict=True):
            phi = builder.phi(FLOATS)
            phi.add_incoming(total, entry)
            phi.add_incoming(sum_, add)
            joined.append(phi)
        return joined

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, sums, bias, onto, out, stride = arguments
        has_bias, has_onto = (builder.icmp_signed("!=", address, LONG(0)) for address in (bias, onto))
        entry, loop, end = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("end")
        builder.branch(loop)

        builder.position_at_end(loop)
        row = builder.phi(LONG)
        row.add_incoming(LONG(0), entry)
        own = builder.gep(builder.inttoptr(sums, BYTES), [builder.mul(row, LONG(STRIDE))])
        totals = [load_line(builder, own, LONG(v), "fp32") for v in range(vectors)]
        place = builder.mul(row, stride)
        totals = plus(builder, totals, bias, has_bias, "bf16")
        totals = plus(builder, totals, builder.add(onto, place), has_onto, kind)
        target = builder.inttoptr(builder.add(out, place), BYTES)
        for v, total in enumerate(totals):
            store_line(builder, total, target, LONG(v), kind)
        following = builder.add(row, LONG(1))
        row.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, rows), loop, end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    @intrinsic
    def run(_: Any, rows: Any, sums: Any, bias: Any, onto: Any, out: Any, stride: Any) -> Any:
        return types.void(*[types.int64] * 6), codegen

    return run


_LINES = {kind: (_lines(4, kind), _lines(2, kind)) for kind in ("fp32", "bf16")}


def finish(x: Any, out: Any, a: Any, rows: Any, width: Any, sums: Any, first: Any, column: Any) -> None:
    """The sums of `rows` rows (≥1) from `first` on, `width` outputs from `column` on, plus bias and onto, into `out`;
    `a`: see `registers.py`. `sums`: their address; fp32, STRIDE bytes from row to row.
    """
    raise NotImplementedError


@overload(finish, inline="always")
def _finish(x: Any, out: Any, a: Any, rows: Any, width: Any, sums: Any, first: Any, column: Any) -> Any:
    four, two = _LINES[KIND[out.dtype]]
    size = out.dtype.bitwidth // 8

    def by_lines(x: Any, out: Any, a: Any, rows: Any, width: Any, sums: Any, first: Any, column: Any) -> None:
        place, bias = size * (first * a[5] + column), a[8] + 2 * column if a[8] != 0 else 0
        onto = a[9] + place if a[9] != 0 else 0
        if width == PANEL:
            four(rows, sums, bias, onto, a[3] + place, size * a[5])
        elif width == PANEL // 2:
            two(rows, sums, bias, onto, a[3] + place, size * a[5])
        else:
            _by_numbers(x, out, a, rows, width, sums, first, column)

    def by_numbers(x: Any, out: Any, a: Any, rows: Any, width: Any, sums: Any, first: Any, column: Any) -> None:
        _by_numbers(x, out, a, rows, width, sums, first, column)

    return by_lines if x.dtype == types.uint16 else by_numbers
