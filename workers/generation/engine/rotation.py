"""Rotary positions (RoPE, arXiv 2104.09864): cos and sin as the model computes them, once for every position."""

from typing import Any

import torch
from torch import Tensor

# Kinds whose angles are a matter of the position alone, however long the sequence has become.
FIXED = {"default", "linear", "llama3", "yarn"}


class Rotation:
    """`table`: cos and sin, `[positions, width]` each, so that a position has the same bits wherever its row stands: of
    a long tensor torch computes some numbers in vectors, others one by one. None where they depend on more.
    """

    def __init__(self, own: Any, like: Tensor, positions: int) -> None:
        """`own`: the model's rotary module; `like` has the type and device of its activations. `positions`: as many as
        the model has.
        """
        self._own, self.table = own, None
        if own.rope_type in FIXED:
            self.table = tuple(
                each[0].contiguous() for each in own(like, torch.arange(positions, device=like.device)[None])
            )
        self.width: int = (self.table or own(like, torch.tensor([[0]])))[0].shape[-1]

    def __call__(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Without a table: positions `[1, rows]` of a step → cos and sin, `[1, rows, width]` each."""
        cos, sin = self._own(like, positions)
        return cos, sin
