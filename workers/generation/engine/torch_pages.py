"""Attention over pages as torch operations, for any device: a chunk of a prompt attends by matrix products, blocks of
queries at a time; decoding rows in buckets of similar length.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.generation.engine.kv_cache import BLOCK_SIZE
from workers.generation.engine.kv_pages import Shape, Spans

BUCKET = 8
QUERY_BLOCK = 128


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
    masks: dict[tuple[int, int, int, int], Tensor] = field(default_factory=dict)

    def mask(self, begin: int, end: int, first: int, window: int) -> Tensor:
        """True where queries of positions begin … end may not see places from `first` to `end`; `[queries, places]`."""
        key = begin, end, first, window
        if key not in self.masks:
            queries = torch.arange(begin, end, device=self.device)[:, None]
            places = torch.arange(first, end, device=self.device)[None]
            hidden = places > queries
            self.masks[key] = hidden | (places <= queries - window) if window else hidden
        return self.masks[key]


class TorchPages:
    """Keys are `[blocks, kv_heads, head_dim, BLOCK_SIZE]` (scores then need no transposition), values
    `[blocks, kv_heads, BLOCK_SIZE, head_dim]`."""

    def __init__(self, blocks: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.zeros(blocks, kv_heads, head_dim, BLOCK_SIZE, dtype=dtype, device=device)
        self.values = torch.zeros(blocks, kv_heads, BLOCK_SIZE, head_dim, dtype=dtype, device=device)

    @staticmethod
    def plan(spans: Spans, device: torch.device) -> Plan:
        single = (spans.counts == 1) & (spans.starts > 0)
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
        blocks, offsets = places // BLOCK_SIZE, places % BLOCK_SIZE
        new = torch.nan_to_num(qkv[:, shape.heads :])
        self.keys[blocks, :, :, offsets] = new[:, : shape.kv_heads]
        self.values[blocks, :, offsets] = new[:, shape.kv_heads :]

    def attend(self, qkv: Tensor, plan: Plan, shape: Shape) -> Tensor:
        output = qkv.new_empty(qkv.shape[0], shape.heads, shape.head_dim)
        for chunk in plan.chunks:
            own = qkv[chunk.begin : chunk.end]
            key, value = self._chunk(own, chunk, shape)
            output[chunk.begin : chunk.end] = attend_chunk(own[:, : shape.heads], key, value, chunk.start, shape, plan)
        if plan.decodes is not None:
            self._decode(qkv, output, plan.decodes, shape)
        return output

    def _chunk(self, own: Tensor, chunk: Chunk, shape: Shape) -> tuple[Tensor, Tensor]:
        """Keys `[kv_heads, head_dim, length]` and values of a sequence up to the chunk's end.

        A first chunk reads its own rows, a later one the cache too.
        """
        if chunk.start == 0:
            key, value = own[:, shape.heads :].split(shape.kv_heads, 1)
            return key.permute(1, 2, 0), value.transpose(0, 1)
        length = chunk.start + own.shape[0]
        keys = self.keys[chunk.table].permute(1, 2, 0, 3).flatten(2)
        return keys[:, :, :length], self.values[chunk.table].transpose(0, 1).flatten(1, 2)[:, :length]

    def _decode(self, qkv: Tensor, output: Tensor, decodes: Decodes, shape: Shape) -> None:
        order = decodes.lengths.argsort()
        for bucket in order.split(BUCKET):
            rows, lengths = decodes.rows[bucket], decodes.lengths[bucket]
            width = -(-int(lengths.max()) // BLOCK_SIZE)
            tables = decodes.tables[bucket, :width]
            keys = self.keys[tables].permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 1)
            values = self.values[tables].transpose(1, 2).flatten(2, 3).flatten(0, 1)
            query = qkv[rows, : shape.heads].reshape(-1, shape.heads // shape.kv_heads, shape.head_dim)
            scores = torch.bmm(query, keys).view(len(rows), shape.heads, -1).float() * shape.scale
            places = torch.arange(width * BLOCK_SIZE, device=qkv.device)[None]
            hidden = places >= lengths[:, None]
            if shape.window:
                hidden |= places < lengths[:, None] - shape.window
            weights = scores.masked_fill_(hidden[:, None], float("-inf")).softmax(-1).to(values.dtype)
            attended = torch.bmm(weights.view(query.shape[0], query.shape[1], -1), values)
            output[rows] = attended.view(len(rows), shape.heads, shape.head_dim)


def attend_chunk(query: Tensor, key: Tensor, value: Tensor, start: int, shape: Shape, plan: Plan) -> Tensor:
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
        scores = scores.masked_fill_(plan.mask(start + begin, last, first, shape.window), float("-inf"))
        weights = scores.softmax(-1).view(kv_heads, -1, last - first)
        target[:, :, begin:end] = torch.bmm(weights, value[:, first:last]).view(kv_heads, -1, end - begin, head_dim)
    return output
