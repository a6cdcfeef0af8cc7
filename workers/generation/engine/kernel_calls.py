"""How modules call the processor's kernels: at once, or onto a tape that plays them later (`cpu/tape.py`)."""

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from workers.generation.engine.cpu.openmp import Kernel


class Varying(str):
    """The name of an argument that each step sets anew."""

    __slots__ = ()


Argument = int | Varying


class Caller(Protocol):
    """Who carries kernels out, now or later."""

    def empty(self, like: Tensor, width: int, dtype: torch.dtype | None = None) -> Tensor:
        """`[1, rows, width]` for a kernel to write; rows (and `dtype`, unless given) as `like` has them."""
        ...

    def varying(self, name: str, value: int) -> Argument:
        """An argument that is `value` in this step and may be another in the next."""
        ...

    def call(self, kernel: "Kernel", *arguments: Argument) -> None: ...


class Now:
    """At once, in memory of the call's own."""

    def empty(self, like: Tensor, width: int, dtype: torch.dtype | None = None) -> Tensor:
        return like.new_empty(1, like.shape[1], width, dtype=dtype)

    def varying(self, name: str, value: int) -> Argument:
        return value

    def call(self, kernel: "Kernel", *arguments: Argument) -> None:
        kernel(*map(int, arguments))


NOW = Now()
