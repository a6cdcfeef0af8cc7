"""The few things that numba lacks: bf16 numbers, typed memory behind an address, an atomic counter, a fast exp."""

import os
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.core import config
from numba.extending import intrinsic, overload

# numba keeps compiled code per source file and does not see a change in another one: so per state of all of them.
_HERE = Path(__file__).parent
_SOURCES = b"".join(path.read_bytes() for path in [*sorted(_HERE.glob("*.py")), _HERE.parent / "kv_cache.py"])
_OWN = _HERE / "__pycache__" if os.access(_HERE, os.W_OK) else Path.home() / ".cache" / "gptstore"
_CACHE = Path(config.CACHE_DIR) if config.CACHE_DIR else _OWN
config.CACHE_DIR = str(_CACHE / blake2b(_SOURCES, digest_size=8).hexdigest())

LOG2_E = 1.4426950408889634
# 2^f for 0 ≤ f < 1, from the highest power of f on; relative error under 3e-7.
POWERS = (1.8775767e-3, 8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1)
ALL = 1 << 60  # the length of an array whose end nobody checks
# Division by zero gives infinity, as everywhere in floating point: an exception could go nowhere from a kernel.
#
# Each kernel is one function: one that it called would be linked to its own copy where the kernel comes from numba's
# cache, and to another, optimised elsewhere, in the process that compiles it; their sums differ in the last bits.
compiled = njit(fastmath=True, error_model="numpy", forceinline=True)


@compiled
def nothing() -> None:
    pass


def _pointer(kind: Any) -> Any:
    @intrinsic
    def cast(_: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), codegen

    return cast


as_u8 = _pointer(types.uint8)
as_u16 = _pointer(types.uint16)
as_u32 = _pointer(types.uint32)
as_f32 = _pointer(types.float32)
as_f64 = _pointer(types.float64)
as_i64 = _pointer(types.int64)


@intrinsic
def take(_: Any, counter: Any, amount: Any) -> Any:
    """Add `amount` to the counter that all threads share; returns what it was before."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", arguments[0], arguments[1], "monotonic")

    return types.int64(types.CPointer(types.int64), types.int64), codegen


def load(value: Any) -> Any:
    """A stored number as fp32: bf16 is kept as uint16."""
    raise NotImplementedError


@overload(load, inline="always")
def _load(value: Any) -> Any:
    if value == types.uint16:

        def widened(value: Any) -> Any:
            return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)

        return widened

    def plain(value: Any) -> Any:
        return value

    return plain


def store(array: Any, index: Any, value: Any) -> None:
    """fp32 into `array`, rounded to nearest even where that holds bf16."""
    raise NotImplementedError


@overload(store, inline="always")
def _store(array: Any, index: Any, value: Any) -> Any:
    if array.dtype == types.uint16:

        def rounded(array: Any, index: Any, value: Any) -> None:
            bits = np.float32(value).view(np.uint32)
            bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            array[index] = np.uint16(bits >> np.uint32(16))

        return rounded

    def plain(array: Any, index: Any, value: Any) -> None:
        array[index] = value

    return plain


def pack_of(array: Any) -> Any:
    """How many of the array's numbers fill a 32-bit word; known to the compiler."""
    raise NotImplementedError


@overload(pack_of, inline="always")
def _pack_of(array: Any) -> Any:
    pack = 2 if array.dtype == types.uint16 else 1

    def constant(array: Any) -> Any:
        return pack

    return constant


def finite(value: Any) -> Any:
    """A stored number, or 0 where it is an infinity or a NaN."""
    raise NotImplementedError


@overload(finite, inline="always")
def _finite(value: Any) -> Any:
    if value == types.uint16:

        def bf16(value: Any) -> Any:
            return np.uint16(value * np.uint16((value & np.uint16(0x7F80)) != np.uint16(0x7F80)))

        return bf16

    def fp32(value: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        return np.uint32(bits * np.uint32((bits & np.uint32(0x7F800000)) != np.uint32(0x7F800000))).view(np.float32)

    return fp32


@njit(inline="always")
def number(bits: Any) -> Any:
    """The fp32 whose bits came as an integer argument."""
    return np.uint32(bits).view(np.float32)


@njit(inline="always")
def exp(x: Any) -> Any:
    """e^x for −87 ≤ x ≤ 88 (clamped), relative error under 3e-7; free of branches, so that it vectorises."""
    t = min(max(x, np.float32(-87.0)), np.float32(88.0)) * np.float32(LOG2_E)
    whole = np.floor(t)
    f = t - whole
    p = np.float32(POWERS[0])
    p = p * f + np.float32(POWERS[1])
    p = p * f + np.float32(POWERS[2])
    p = p * f + np.float32(POWERS[3])
    p = p * f + np.float32(POWERS[4])
    p = p * f + np.float32(POWERS[5])
    return p * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


def typed(like: Any, address: Any) -> Any:
    """Memory at `address` as an array of `like`'s kind of numbers."""
    raise NotImplementedError


@overload(typed, inline="always")
def _typed(like: Any, address: Any) -> Any:
    if like.dtype == types.uint16:

        def bf16(like: Any, address: Any) -> Any:
            return carray(as_u16(address), ALL)

        return bf16

    def fp32(like: Any, address: Any) -> Any:
        return carray(as_f32(address), ALL)

    return fp32


@lru_cache
def bits(value: float) -> int:
    """An fp32 as the integer that `number` reads."""
    return int(np.float32(value).view(np.uint32))
