"""Attention over the paged KV cache, put into transformers' models through its attention registry.

All tensors are packed: `[1, heads, total_tokens, head_dim]`, no padding between sequences. Prefill runs one
SDPA per sequence; decoding sequences run in buckets of similar length, the heads of a KV group as query rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "gptstore_paged"
BUCKET = 8


@dataclass(frozen=True)
class Prefill:
    """Rows `[begin, end)` of the pack continue a sequence at position `start`; `table`: its blocks."""

    begin: int
    end: int
    start: int
    table: Tensor


@dataclass(frozen=True)
class DecodeBucket:
    """One row each of several sequences. `tables`: [rows, blocks]; `hidden`: [rows, 1, places] past the end."""

    rows: Tensor
    tables: Tensor
    hidden: Tensor


class LayerCache:
    """Keys and values of one layer, each `[blocks, kv_heads, block_size, head_dim]`, paid for as touched."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def write(self, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """`places`: [tokens · kv_heads] rows of the flat cache; keys, values: [1, kv_heads, tokens, head_dim].

        Only finite numbers are stored: blocks are reused, and 0 · NaN in a hidden place would reach others.
        """
        width = keys.shape[-1]
        for pages, new in ((self.keys, keys), (self.values, values)):
            rows = new[0].transpose(0, 1).reshape(-1, width)
            pages.view(-1, width).index_copy_(0, places, torch.nan_to_num(rows))


@dataclass(frozen=True)
class PackedStep:
    """Where each row of this step's pack reads and writes the cache."""

    layers: list[LayerCache]
    places: Tensor
    prefills: list[Prefill]
    decodes: list[DecodeBucket]


def gather(pages: Tensor, tables: Tensor) -> Tensor:
    """Pages `[blocks, kv_heads, block_size, d]` by `[rows, n]` → `[rows, kv_heads, n · block_size, d]`."""
    return pages[tables].transpose(1, 2).flatten(2, 3)


def paged_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    step: PackedStep,
    **_: object,
) -> tuple[Tensor, None]:
    """Write this step's keys and values, then attend; returns `[1, total_tokens, heads, head_dim]`."""
    layer_index = module.layer_idx
    assert isinstance(layer_index, int)  # noqa: S101 (nn.Module attributes are untyped)
    layer = step.layers[layer_index]
    layer.write(step.places, key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = torch.empty_like(query[0].transpose(0, 1), memory_format=torch.contiguous_format)
    for prefill in step.prefills:
        rows = slice(prefill.begin, prefill.end)
        output[rows] = _attend_prefill(layer, prefill, query[:, :, rows], key[:, :, rows], value[:, :, rows], scale)
    for bucket in step.decodes:
        output[bucket.rows] = _attend_decode(layer, bucket, query[0][:, bucket.rows].transpose(0, 1), scale)
    return output.unsqueeze(0), None


def _attend_prefill(
    layer: LayerCache, prefill: Prefill, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> Tensor:
    """→ `[tokens, heads, head_dim]`. A first chunk attends to itself, a later one also to the cache."""
    mask, causal = None, True
    if prefill.start > 0:
        length = prefill.start + query.shape[2]
        key = gather(layer.keys, prefill.table[None])[:, :, :length]
        value = gather(layer.values, prefill.table[None])[:, :, :length]
        places = torch.arange(length, device=query.device)
        mask, causal = places[None, :] <= places[prefill.start :, None], False
    grouped = query.shape[1] != key.shape[1]
    result = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )
    return result[0].transpose(0, 1)


def _attend_decode(layer: LayerCache, bucket: DecodeBucket, query: Tensor, scale: float) -> Tensor:
    """query `[rows, heads, head_dim]` → the same; grouped-query heads share one read of their K and V."""
    rows, heads, width = query.shape
    kv_heads = layer.keys.shape[1]
    keys = gather(layer.keys, bucket.tables).flatten(0, 1)
    values = gather(layer.values, bucket.tables).flatten(0, 1)
    grouped = query.reshape(rows * kv_heads, heads // kv_heads, width)
    scores = torch.bmm(grouped, keys.transpose(1, 2)).view(rows, heads, -1).float() * scale
    weights = scores.masked_fill_(bucket.hidden, float("-inf")).softmax(-1).to(values.dtype)
    return torch.bmm(weights.view(rows * kv_heads, heads // kv_heads, -1), values).view(rows, heads, width)


AttentionInterface.register(NAME, paged_attention)
