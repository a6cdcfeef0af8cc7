"""Rotary positions (RoPE, arXiv 2104.09864): cos and sin as the model computes them, once for every position."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

# Kinds whose angles are a matter of the position alone, however long the sequence has become.
FIXED = {"default", "linear", "llama3", "yarn"}


class Rotation:
    """A table, so that a position has the same bits wherever its row stands: of a long tensor torch computes some
    numbers in vectors, others one by one. Looking a row up takes 6 µs, computing it 24.
    """

    def __init__(self, own: Any, like: Tensor) -> None:
        """`own`: the model's rotary module; `like` has the type and device of its activations. `table`: cos and sin,
        `[positions, width]` each, None where they depend on more than the position.
        """
        self._own, self.table = own, None
        if own.rope_type in FIXED:
            places = torch.arange(own.max_seq_len_cached, device=like.device)[None]
            self.table = tuple(each[0].contiguous() for each in own(like, places))
        self.width: int = self.table[0].shape[1] if self.table else own(like, torch.tensor([[0]]))[0].shape[2]

    def __call__(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions `[1, rows]` → cos and sin, `[1, rows, width]` each."""
        if self.table is None:
            cos, sin = self._own(like, positions)
            return cos.contiguous(), sin.contiguous()
        cos, sin = self.table
        return embedding(positions, cos), embedding(positions, sin)
