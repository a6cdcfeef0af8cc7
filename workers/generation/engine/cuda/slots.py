"""Adapters of recorded steps: a graph reads them at fixed addresses, so those in use are copied to slots."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from workers.generation.engine.adapter_bank import AdapterBank
from workers.generation.engine.adapters import Adapter, AdapterLinear

SLOTS = 16
RANK = 16


class AdapterSlots:
    """Up to SLOTS adapters of ranks up to RANK, for every adapter-aware linear of a model: SLOTS · RANK · (in + out)
    numbers of each, whatever is in use.

    All rows are taken down to the ranks of all slots, what is not a row's own is left out, and all are taken up again:
    two products that read each slot once, where collecting each row's factors would read and write them per row.
    """

    def __init__(self, linears: Sequence[AdapterLinear], rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self._names = [linear.parts[0].name for linear in linears]
        sizes = [(linear.product.in_features, linear.product.out_features) for linear in linears]
        self._down = [torch.zeros(SLOTS, RANK, inner, dtype=dtype, device=device) for inner, _ in sizes]
        self._up = [torch.zeros(SLOTS, RANK, outer, dtype=dtype, device=device) for _, outer in sizes]
        self._own = torch.zeros(rows, SLOTS, 1, dtype=torch.bool, device=device)
        self._free = list(range(SLOTS))
        self._held: OrderedDict[str, int] = OrderedDict()  # digest → slot, least recently used first

    def take(self, digests: Sequence[str | None], bank: AdapterBank) -> bool:
        """Each row's adapter (None: the base alone), all resident in `bank`. False, and nothing changed: too many of
        them for one step, or one of a higher rank.
        """
        wanted = list(dict.fromkeys(digest for digest in digests if digest is not None))
        if len(wanted) > SLOTS or any(bank.get(digest).rank > RANK for digest in wanted):
            return False
        for digest in wanted:
            if digest in self._held:
                self._held.move_to_end(digest)
        for digest in wanted:
            if digest not in self._held:
                self._put(digest, bank.get(digest))
        own = torch.zeros(self._own.shape, dtype=torch.bool)
        for row, mine in enumerate(digests):
            if mine is not None:
                own[row, self._held[mine]] = True
        self._own.copy_(own)
        return True

    def add(self, linear: AdapterLinear, hidden: Tensor, result: Tensor) -> None:
        """hidden: `[1, rows, in]`; to result `[1, rows, out]` each row's own low-rank product is added."""
        down, up, rows = self._down[linear.index], self._up[linear.index], hidden.shape[1]
        low = (hidden[0] @ down.flatten(0, 1).t()).view(rows, SLOTS, RANK)
        low = torch.where(self._own[:rows], low, 0)  # not multiplied: 0 · NaN would be somebody else's NaN
        result[0].addmm_(low.flatten(1), up.flatten(0, 1))

    def forget(self) -> None:
        """All slots are free."""
        self._held.clear()
        self._free = list(range(SLOTS))

    def _put(self, digest: str, adapter: Adapter) -> None:
        if not self._free:
            self._free.append(self._held.popitem(last=False)[1])
        slot = self._free[-1]  # free until it is filled: a copy may fail
        for name, down, up in zip(self._names, self._down, self._up, strict=True):
            down[slot].zero_()
            up[slot].zero_()
            if name in adapter.factors:
                # Finite: every row of a step passes by every slot, with zeros that would be NaN by anything else.
                a, b = map(torch.nan_to_num, adapter.factors[name])
                down[slot, : len(a)] = a
                up[slot, : len(b)] = b
        self._held[digest] = self._free.pop()
