"""Weights in pages of 2 MiB: with a single row the products wait for memory alone, and with pages of 4 KiB much of that
wait is for addresses (measured: 202 MB read at 50 against 70 GB/s on two cores).
"""

import mmap

import torch
from torch import Tensor

CHUNK = 128 << 20  # address space; memory is taken as it is written
LINE = 64


class HugePages:
    """Of one model: what it placed is freed with its last tensor. Where the system has none, usual pages."""

    def __init__(self) -> None:
        self._chunk: mmap.mmap | None = None
        self._taken = 0

    def place(self, tensor: Tensor) -> Tensor:
        """A copy."""
        if self._chunk is None or self._taken + tensor.nbytes > len(self._chunk):
            self._chunk, self._taken = mmap.mmap(-1, max(CHUNK, tensor.nbytes), flags=mmap.MAP_PRIVATE), 0
            if hasattr(mmap, "MADV_HUGEPAGE"):
                self._chunk.madvise(mmap.MADV_HUGEPAGE)
        own = torch.frombuffer(self._chunk, dtype=tensor.dtype, count=tensor.numel(), offset=self._taken)
        self._taken += -(-tensor.nbytes // LINE) * LINE
        return own.view(tensor.shape).copy_(tensor)
