"""Attention over pages as torch operations, for any device: a prompt's chunk by SDPA, decoding rows in buckets of
similar length.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.generation.engine.kv_cache import BLOCK_SIZE
from workers.generation.engine.kv_pages import PageForm, Shape, Spans

BUCKET = 8


@dataclass(frozen=True)
class Chunk:
    """Rows `[begin, end)` of the pack continue a sequence at position `start`; `table`: its blocks."""

    begin: int
    end: int
    start: int
    table: Tensor


@dataclass(frozen=True)
class Decodes:
    """`rows` of the pack that are one new token each; `tables`: [n, blocks], padded; `lengths` with the new token."""

    rows: Tensor
    tables: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Plan:
    chunks: list[Chunk]
    decodes: Decodes | None
    device: torch.device
    masks: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    def mask(self, start: int, end: int, window: int) -> Tensor:
        """Which places before `end` queries of positions `start` … `end` see; `[queries, places]`."""
        key = start, end, window
        if key not in self.masks:
            queries = torch.arange(start, end, device=self.device)[:, None]
            places = torch.arange(end, device=self.device)[None]
            seen = places <= queries
            self.masks[key] = seen & (places > queries - window) if window else seen
        return self.masks[key]


class TorchPages:
    """Keys and values are `[kv_heads, blocks · BLOCK_SIZE, head_dim]`."""

    def __init__(self, form: PageForm) -> None:
        shape = form.kv_heads, form.blocks * BLOCK_SIZE, form.head_dim
        self.keys, self.values = (torch.zeros(shape, dtype=form.dtype, device=form.device) for _ in range(2))

    def plan(self, spans: Spans) -> Plan:
        single, device = decoding(spans), self.keys.device
        chunks = []
        for at in (~single).nonzero()[0]:
            end = int(spans.starts[at] + spans.counts[at])
            table = torch.as_tensor(spans.tables[at, : -(-end // BLOCK_SIZE)], device=device)
            begin = int(spans.begins[at])
            chunks.append(Chunk(begin, begin + int(spans.counts[at]), int(spans.starts[at]), table))
        decodes = None
        if single.any():
            rows, lengths = spans.begins[single], spans.starts[single] + 1
            decodes = Decodes(*(torch.as_tensor(each, device=device) for each in (rows, spans.tables[single], lengths)))
        return Plan(chunks, decodes, device)

    def store(self, qkv: Tensor, places: Tensor, shape: Shape) -> None:
        new = torch.nan_to_num(qkv[:, shape.heads :]).transpose(0, 1)
        self.keys.index_copy_(1, places, new[: shape.kv_heads])
        self.values.index_copy_(1, places, new[shape.kv_heads :])

    def attend(self, qkv: Tensor, plan: Plan, shape: Shape) -> Tensor:
        output = qkv.new_empty(qkv.shape[0], shape.heads, shape.head_dim)
        for chunk in plan.chunks:
            output[chunk.begin : chunk.end] = self._chunk(qkv[chunk.begin : chunk.end], chunk, plan, shape)
        if plan.decodes is not None:
            output[plan.decodes.rows] = self._decode(qkv[plan.decodes.rows, : shape.heads], plan.decodes, shape)
        return output

    def _chunk(self, own: Tensor, chunk: Chunk, plan: Plan, shape: Shape) -> Tensor:
        """A first chunk reads its own rows, a later one all pages of the sequence so far."""
        rows, (query, key, value) = (
            own.shape[0],
            own.transpose(0, 1).split([shape.heads, shape.kv_heads, shape.kv_heads]),
        )
        end = chunk.start + rows
        if chunk.start:
            key, value = (pages[:, chunk.table].flatten(1, 2)[:, :end] for pages in self._pages())
        mask = plan.mask(chunk.start, end, shape.window) if chunk.start or 0 < shape.window < end else None
        # One key per query's head: with fewer, CUDA's fast kernels take no mask and no fp32.
        key, value = (each.repeat_interleave(shape.heads // shape.kv_heads, 0) for each in (key, value))
        attended = scaled_dot_product_attention(
            query[None], key[None], value[None], mask, is_causal=mask is None, scale=shape.scale
        )
        return attended[0].transpose(0, 1)

    def _decode(self, query: Tensor, decodes: Decodes, shape: Shape) -> Tensor:
        """query: [n, heads, head_dim] → the same. The heads that share keys are rows of one product."""
        output = torch.empty_like(query)
        for bucket in decodes.lengths.argsort().split(BUCKET):
            lengths = decodes.lengths[bucket]
            width = -(-int(lengths.max()) // BLOCK_SIZE)
            tables = decodes.tables[bucket, :width]
            keys, values = (pages[:, tables].flatten(2, 3).transpose(0, 1) for pages in self._pages())
            grouped = query[bucket].view(len(bucket), shape.kv_heads, -1, shape.head_dim)
            scores = (grouped @ keys.transpose(2, 3)).float() * shape.scale
            places = torch.arange(width * BLOCK_SIZE, device=query.device)[None]
            hidden = places >= lengths[:, None]
            if shape.window:
                hidden |= places < lengths[:, None] - shape.window
            weights = scores.masked_fill_(hidden[:, None, None], float("-inf")).softmax(-1).to(values.dtype)
            output[bucket] = (weights @ values).flatten(1, 2)
        return output

    def _pages(self) -> tuple[Tensor, Tensor]:
        """Keys and values, `[kv_heads, blocks, BLOCK_SIZE, head_dim]`."""
        return self.keys.unflatten(1, (-1, BLOCK_SIZE)), self.values.unflatten(1, (-1, BLOCK_SIZE))


def decoding(spans: Spans) -> np.ndarray:
    """Which sequences gain one token that reads what is cached."""
    single: np.ndarray = (spans.counts == 1) & (spans.starts > 0)
    return single
