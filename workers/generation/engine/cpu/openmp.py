"""Compiled kernels on torch's own OpenMP threads: one pool for oneDNN and for us, so neither waits on the other's
spinning threads (measured: a second pool costs a decode step of 64 sequences half its speed).

A kernel is a C function `void body(int64_t *arguments)`; every thread of the team enters it and takes work by adding
to `arguments[0]`. Where torch's OpenMP has no `GOMP_parallel`, the calling thread does all the work.
"""

import ctypes
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from numba import cfunc, types


def _openmp() -> ctypes.CDLL | None:
    folder = Path(torch.__file__).parent
    bundled = [*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")]
    for library in [*(ctypes.CDLL(str(path)) for path in bundled), ctypes.CDLL(None)]:
        if hasattr(library, "GOMP_parallel"):
            library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            library.GOMP_parallel.restype = None
            return library
    return None


_OPENMP = _openmp()
# Address of a function without arguments that a thread of the team leaves when all have entered it; 0: no team.
BARRIER = int(ctypes.cast(_OPENMP.GOMP_barrier, ctypes.c_void_p).value or 0) if _OPENMP is not None else 0


class Kernel:
    """One function, compiled at its first call; its arguments are integers (addresses, sizes) after the counter."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._function = function

    @cached_property
    def address(self) -> int:
        return int(
            cfunc(types.void(types.CPointer(types.int64)), cache=True, error_model="numpy")(self._function).address
        )

    @cached_property
    def _alone(self) -> Callable[[Any], None]:
        return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)

    def prepare(self) -> None:
        """Compile now (seconds, where no cache holds it), so that nobody's first request waits for it."""
        _ = self.address

    def __call__(self, *arguments: int) -> None:
        """With as many threads as torch uses."""
        packed = (ctypes.c_int64 * (len(arguments) + 1))(0, *arguments)
        if _OPENMP is None:
            self._alone(packed)
        else:
            _OPENMP.GOMP_parallel(self.address, packed, torch.get_num_threads(), 0)
