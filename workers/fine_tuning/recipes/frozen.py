"""Products with frozen weights and the low-rank factors that learn beside them, on the way forth and back.

Forth: y = x Wᵀ + scale · (x Aᵀ) Bᵀ. Back: the gradient times W + scale · B A, the same with the factors' parts swapped.
Where the engine's own kernel is ahead of the library (bf16 on a processor), weights are packed once for each way, so
they take their room twice, and what the factors change is added to a product's own sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from workers.generation.engine import cpu


class FrozenProduct(Protocol):
    """`weight`: [out, in]; rows in and out are [tokens, width] of its type."""

    def forth(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y, and x Aᵀ [tokens, rank]."""
        ...

    def back(self, gradient: Tensor, *, wanted: bool) -> tuple[Tensor | None, Tensor]:
        """The gradient of x, if `wanted`, and scale · gradient B [tokens, rank]."""
        ...


@dataclass(frozen=True)
class Factors:
    """a: [rank, in], b: [out, rank], fp32, as they are while training."""

    a: Tensor
    b: Tensor
    scale: float


def frozen_product(weight: Tensor, bias: Tensor | None, factors: Factors) -> FrozenProduct:
    """The fastest here; `weight` need not be kept."""
    even = all(width % 2 == 0 for width in weight.shape)
    on_processor = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    if cpu.AVAILABLE and even and on_processor and cpu.multiplies(weight.dtype):
        return KernelProduct(weight, bias, factors)
    return LibraryProduct(weight, bias, factors)


class LibraryProduct:
    """By torch."""

    def __init__(self, weight: Tensor, bias: Tensor | None, factors: Factors) -> None:
        self._weight, self._bias, self._factors = weight, bias, factors
        self.read()

    def read(self) -> None:
        """The factors in the weight's numbers; no copy where those are fp32."""
        self._a, self._b = (each.to(self._weight.dtype) for each in (self._factors.a, self._factors.b))

    def forth(self, x: Tensor) -> tuple[Tensor, Tensor]:
        down = x @ self._a.t()
        return linear(x, self._weight, self._bias).addmm_(down, self._b.t(), alpha=self._factors.scale), down

    def back(self, gradient: Tensor, *, wanted: bool) -> tuple[Tensor | None, Tensor]:
        up = (gradient @ self._b).mul_(self._factors.scale)
        return (torch.mm(gradient, self._weight).addmm_(up, self._a) if wanted else None), up


class KernelProduct:
    """By the engine's kernel, from factors as they were last published."""

    def __init__(self, weight: Tensor, bias: Tensor | None, factors: Factors) -> None:
        self._factors, self.scale, self._rank = factors, factors.scale, len(factors.a)
        self._forth, self._back = Way(weight, bias, self._rank), Way(weight.t(), None, self._rank)

    def forth(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._forth(x.contiguous())

    def back(self, gradient: Tensor, *, wanted: bool) -> tuple[Tensor | None, Tensor]:
        return self._back(gradient.contiguous(), wanted=wanted)

    def table_row(self) -> list[int]:
        """As `PACK` reads it."""
        (rank, inner), outer = self._factors.a.shape, len(self._factors.b)
        forth, back = self._forth, self._back
        to = [forth.down, forth.up, back.down, back.up]
        addresses = [each.data_ptr() for each in (self._factors.a, self._factors.b)]
        return [
            *addresses,
            rank,
            inner,
            outer,
            *(each.data_ptr() for each in to),
            forth.down.shape[1],
            back.down.shape[1],
        ]


class Way:
    """x Wᵀ + (x Dᵀ) U for one W [out, in]; D [rank, in] and U [rank, out] packed for the kernels, zero at first."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rank: int) -> None:
        from workers.generation.engine.cpu.low_rank import entry, pack_down, pack_up
        from workers.generation.engine.cpu.multiply import pack

        outer, inner = weight.shape
        self._outer, self._panels, self._bias, self._rank = outer, pack(weight), bias, rank
        self.down, self.up = pack_down(weight.new_zeros(rank, inner)), pack_up(weight.new_zeros(rank, outer), 0)
        self._table = torch.tensor(entry(self.down, self.up, 0))

    def __call__(self, x: Tensor, *, wanted: bool = True) -> tuple[Any, Tensor]:
        """The product, if `wanted`, and x Dᵀ."""
        from workers.generation.engine.cpu.low_rank import ENTRY, Changes, reduce
        from workers.generation.engine.cpu.multiply import multiply
        from workers.generation.engine.kernel_calls import NOW

        owners, room = torch.zeros(len(x), dtype=torch.int64), len(self.down)
        changes = Changes(owners.data_ptr(), self._table.data_ptr(), ENTRY, room, begin=0, parts=1, room=room)
        low = reduce(x[None], changes, NOW)
        product = multiply(x[None], self._panels, self._outer, self._bias, low=low, changes=changes) if wanted else None
        return None if product is None else product[0], low[0, :, : self._rank]


class Publisher:
    """Shows changed factors to the products, which may read copies of their own; the factors stay where they are."""

    def __init__(self, products: Sequence[FrozenProduct]) -> None:
        self._read = [product for product in products if isinstance(product, LibraryProduct)]
        packed = [product for product in products if isinstance(product, KernelProduct)]
        self._packed = torch.tensor([product.table_row() for product in packed])
        self._scale = packed[0].scale if packed else 0.0

    def __call__(self) -> None:
        for product in self._read:
            product.read()
        if len(self._packed):
            from workers.generation.engine.cpu.low_rank import PACK
            from workers.generation.engine.cpu.scalar import bits

            PACK(self._packed.data_ptr(), len(self._packed), bits(self._scale))
