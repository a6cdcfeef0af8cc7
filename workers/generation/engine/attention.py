"""Paged attention put into transformers' models through its attention registry.

All rows of a step are packed, no padding between sequences: queries are `[rows, heads, head_dim]`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from workers.generation.engine.kv_pages import KvPages, Shape

NAME = "gptstore_paged"


@dataclass(frozen=True)
class PackedStep:
    """Where each row of this step's pack reads and writes the cache. `places`: block · BLOCK_SIZE + offset."""

    layers: list[KvPages]
    places: Tensor
    plan: Any


def paged_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    *,
    step: PackedStep,
    **_: object,
) -> tuple[Tensor, None]:
    """For models whose own code rotates: tensors are `[1, heads, rows, head_dim]`; returns `[1, rows, heads, dim]`."""
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("soft-capped scores and attention sinks are not supported")
    layer_index = module.layer_idx
    assert isinstance(layer_index, int)  # noqa: S101 (nn.Module attributes are untyped)
    head_dim = query.shape[-1]
    shape = Shape(
        heads=query.shape[1],
        kv_heads=key.shape[1],
        head_dim=head_dim,
        scale=head_dim**-0.5 if scaling is None else scaling,
        window=sliding_window or 0,
    )
    qkv = torch.cat([query[0], key[0], value[0]]).transpose(0, 1).contiguous()
    layer = step.layers[layer_index]
    layer.store(qkv, step.places, shape)
    return layer.attend(qkv, step.plan, shape)[None], None


AttentionInterface.register(NAME, paged_attention)
