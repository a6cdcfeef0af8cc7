"""Attention over the paged KV cache, put into transformers' models through its attention registry.

All rows of a step are packed, no padding between sequences: queries are `[rows, heads, head_dim]`. A chunk of a
prompt attends by matrix products, blocks of queries at a time; decoding rows share one kernel call per layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AttentionInterface

from workers.generation.engine.kv_pages import Decodes, KvPages, Shape

NAME = "gptstore_paged"
QUERY_BLOCK = 128


@dataclass(frozen=True)
class Chunk:
    """Rows `[begin, end)` of the pack continue a sequence at position `start`; `table`: its blocks."""

    begin: int
    end: int
    start: int
    table: Tensor


class Masks:
    """What queries may not see, as -inf to add; made once per step, for every layer asks for the same."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._made: dict[tuple[int, int, int, int], Tensor] = {}

    def of(self, begin: int, end: int, first: int, window: int) -> Tensor:
        """[queries, places] for queries of positions begin … end and places from `first` to `end`."""
        key = begin, end, first, window
        if key not in self._made:
            queries = torch.arange(begin, end, device=self._device)[:, None]
            places = torch.arange(first, end, device=self._device)[None]
            hidden = places > queries
            if window:
                hidden |= places <= queries - window
            mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
            self._made[key] = mask.masked_fill_(hidden, float("-inf"))
        return self._made[key]


@dataclass(frozen=True)
class PackedStep:
    """Where each row of this step's pack reads and writes the cache. `places`: block · BLOCK_SIZE + offset."""

    layers: list[KvPages]
    places: Tensor
    chunks: list[Chunk]
    decodes: Decodes | None
    masks: Masks


def attend(step: PackedStep, layer: KvPages, qkv: Tensor, shape: Shape) -> Tensor:
    """`qkv`: [rows, heads + 2 · kv_heads, head_dim], already stored in the cache → [rows, heads · head_dim]."""
    rows = qkv.shape[0]
    output = qkv.new_empty(rows, shape.heads, shape.head_dim)
    for chunk in step.chunks:
        own = qkv[chunk.begin : chunk.end]
        key, value = layer.chunk(own, chunk.start, chunk.table, shape)
        output[chunk.begin : chunk.end] = attend_chunk(
            own[:, : shape.heads], key, value, chunk.start, shape, step.masks
        )
    if step.decodes is not None:
        layer.decode(qkv, output, step.decodes, shape)
    return output.view(rows, -1)


def attend_chunk(query: Tensor, key: Tensor, value: Tensor, start: int, shape: Shape, masks: Masks) -> Tensor:
    """Causal attention of one chunk.

    query: [rows, heads, head_dim]; key: [kv_heads, head_dim, length]; value: [kv_heads, length, head_dim].
    The heads of a KV group are query rows of one product; each block of queries reads only what it may see.
    """
    rows, heads, head_dim = query.shape
    kv_heads = key.shape[0]
    grouped = (query * shape.scale).view(rows, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    output = torch.empty_like(query)
    target = output.view(rows, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    for begin in range(0, rows, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, rows)
        first = max(start + begin + 1 - shape.window, 0) if shape.window else 0
        last = start + end
        block = grouped[:, :, begin:end].reshape(kv_heads, -1, head_dim)
        scores = torch.bmm(block, key[:, :, first:last]).view(kv_heads, -1, end - begin, last - first)
        scores += masks.of(start + begin, last, first, shape.window)
        weights = scores.softmax(-1).view(kv_heads, -1, last - first)
        target[:, :, begin:end] = torch.bmm(weights, value[:, first:last]).view(kv_heads, -1, end - begin, head_dim)
    return output


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
    output = attend(step, layer, qkv, shape)
    return output.view(1, -1, shape.heads, head_dim), None


AttentionInterface.register(NAME, paged_attention)
