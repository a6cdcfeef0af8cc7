"""The vectors that the kernels' LLVM code is spelled in: LANES numbers at a time, fp32 however they are stored."""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.core.registry import cpu_target

LANES = 16
LINE = 64
FEATURES = cpu_target.target_context.codegen().magic_tuple()[2]
HAS_PAIRS = "+avx512bf16" in FEATURES
BYTES, WORD, LONG = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)
WORDS, FLOATS = ir.VectorType(WORD, LANES), ir.VectorType(ir.FloatType(), LANES)
KIND = {types.float32: "fp32", types.uint16: "bf16", types.uint8: "int8"}


class BFloat(ir.Type):
    """LLVM's bf16, which llvmlite cannot name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


def prefetch(builder: Any, address: Any, level: int = 1, write: bool = False) -> None:
    """Into the caches from the `level`-th on."""
    kind = ir.FunctionType(ir.VoidType(), [BYTES, WORD, WORD, WORD])
    function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [address, WORD(int(write)), WORD(4 - level), WORD(1)])


def all_of(kind: Any, value: Any) -> Any:
    return ir.Constant(kind, [value] * LANES)


def spread(builder: Any, value: Any) -> Any:
    """The same number in every lane."""
    one = builder.insert_element(ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined), value, WORD(0))
    return builder.shuffle_vector(one, one, all_of(WORDS, 0))


def in_bf16(builder: Any, numbers: Any) -> Any:
    """To nearest, ties to even; LLVM has no conversion where the processor has none."""
    if HAS_PAIRS:
        return builder.fptrunc(numbers, ir.VectorType(BFloat(), LANES))
    bits = builder.bitcast(numbers, WORDS)
    odd = builder.and_(builder.lshr(bits, all_of(WORDS, 16)), all_of(WORDS, 1))
    rounded = builder.add(builder.add(bits, odd), all_of(WORDS, 0x7FFF))
    return builder.trunc(builder.lshr(rounded, all_of(WORDS, 16)), ir.VectorType(ir.IntType(16), LANES))


def at_offset(builder: Any, base: Any, offset: Any, kind: Any) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())


def load_line(builder: Any, base: Any, line: Any, kind: str) -> Any:
    """The `line`-th LANES numbers of `kind` from `base` on, as fp32."""
    if kind == "fp32":
        return builder.load(at_offset(builder, base, builder.mul(line, LONG(LINE)), FLOATS), align=4)
    place = at_offset(builder, base, builder.mul(line, LONG(LINE // 2)), ir.VectorType(ir.IntType(16), LANES))
    return builder.bitcast(builder.shl(builder.zext(builder.load(place, align=2), WORDS), all_of(WORDS, 16)), FLOATS)


def store_line(builder: Any, numbers: Any, base: Any, line: Any, kind: str) -> None:
    """fp32 `numbers` as the `line`-th LANES of `kind` from `base` on."""
    stored, size = (numbers, LINE) if kind == "fp32" else (in_bf16(builder, numbers), LINE // 2)
    builder.store(stored, at_offset(builder, base, builder.mul(line, LONG(size)), stored.type), align=2)
