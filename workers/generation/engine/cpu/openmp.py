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


def _team_launcher() -> Callable[..., None] | None:
    folder = Path(torch.__file__).parent
    bundled = [*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")]
    for library in [*(ctypes.CDLL(str(path)) for path in bundled), ctypes.CDLL(None)]:
        launch: Callable[..., None] | None = getattr(library, "GOMP_parallel", None)
        if launch is not None:
            launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]  # type: ignore[attr-defined]
            launch.restype = None  # type: ignore[attr-defined]
            return launch
    return None


_LAUNCH = _team_launcher()


class Kernel:
    """One function, compiled at its first call; its arguments are integers (addresses, sizes) after the counter."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._function = function

    @cached_property
    def _address(self) -> int:
        return int(
            cfunc(types.void(types.CPointer(types.int64)), cache=True, error_model="numpy")(self._function).address
        )

    @cached_property
    def _alone(self) -> Callable[[Any], None]:
        return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._address)

    def prepare(self) -> None:
        """Compile now (seconds, where no cache holds it), so that nobody's first request waits for it."""
        _ = self._address

    def alone(self, *arguments: int) -> None:
        """In the calling thread: for work that is done before a team would have woken."""
        self._alone((ctypes.c_int64 * (len(arguments) + 1))(0, *arguments))

    def __call__(self, *arguments: int) -> None:
        """With as many threads as torch uses."""
        packed = (ctypes.c_int64 * (len(arguments) + 1))(0, *arguments)
        if _LAUNCH is None:
            self._alone(packed)
        else:
            _LAUNCH(self._address, packed, torch.get_num_threads(), 0)
