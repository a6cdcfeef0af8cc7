"""Keys and values of one layer in pages of BLOCK_SIZE positions, and the two ways to read them for one new token.

Keys are `[blocks, kv_heads, head_dim, BLOCK_SIZE]` (the form in which scores need no transposition), values
`[blocks, kv_heads, BLOCK_SIZE, head_dim]`. Memory is paid for as pages are touched. Only finite numbers are
stored: pages are reused, and 0 · NaN in a hidden place would reach another sequence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.generation.engine import cpu
from workers.generation.engine.kv_cache import BLOCK_SIZE

BUCKET = 8


@dataclass(frozen=True)
class Shape:
    """One attention layer's form. `window`: how many positions back it looks, itself included; 0 is all."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0


@dataclass(frozen=True)
class Decodes:
    """`rows` of the pack that are one new token each; `tables`: [n, blocks], padded; `lengths` with the new token."""

    rows: Tensor
    tables: Tensor
    lengths: Tensor


class KvPages:
    """As torch operations, for any device."""

    def __init__(self, blocks: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.zeros(blocks, kv_heads, head_dim, BLOCK_SIZE, dtype=dtype, device=device)
        self.values = torch.zeros(blocks, kv_heads, BLOCK_SIZE, head_dim, dtype=dtype, device=device)

    def store(self, qkv: Tensor, places: Tensor, shape: Shape) -> None:
        """Keep this step's keys and values; `qkv`: [rows, heads + 2 · kv_heads, head_dim]."""
        blocks, offsets = places // BLOCK_SIZE, places % BLOCK_SIZE
        new = torch.nan_to_num(qkv[:, shape.heads :])
        self.keys[blocks, :, :, offsets] = new[:, : shape.kv_heads]
        self.values[blocks, :, offsets] = new[:, shape.kv_heads :]

    def chunk(self, own: Tensor, start: int, table: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        """Keys `[kv_heads, head_dim, length]` and values of a sequence up to the chunk's end.

        A first chunk reads its own rows, a later one the cache too.
        """
        if start == 0:
            key, value = own[:, shape.heads :].split(shape.kv_heads, 1)
            return key.permute(1, 2, 0), value.transpose(0, 1)
        length = start + own.shape[0]
        keys = self.keys[table].permute(1, 2, 0, 3).flatten(2)
        return keys[:, :, :length], self.values[table].transpose(0, 1).flatten(1, 2)[:, :length]

    def decode(self, qkv: Tensor, output: Tensor, decodes: Decodes, shape: Shape) -> None:
        """Attend with one query row per sequence, in buckets of similar length; writes into `output`."""
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


class KernelPages(KvPages):
    """On a processor, with compiled kernels that read live positions only."""

    def store(self, qkv: Tensor, places: Tensor, shape: Shape) -> None:
        self.rotate(qkv, places, shape, None, None, None)

    def rotate(
        self,
        qkv: Tensor,
        places: Tensor,
        shape: Shape,
        positions: tuple[Tensor, Tensor] | None,
        norms: tuple[Tensor, Tensor] | None,
        norm_form: tuple[int, int] | None,
    ) -> None:
        """Norm and rotate queries and keys in place, then store. `positions`: cos and sin `[rows, rotated]`;
        `norms`: weights of the query's and key's head norm; `norm_form`: bits of epsilon, offset of the weights.
        """
        from workers.generation.engine.cpu.rotate import ROTATE

        cos, sin = positions or (qkv, qkv)
        epsilon, offset = norm_form or (0, 0)
        ROTATE[cpu.KINDS[qkv.dtype]](
            qkv.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            norms[0].data_ptr() if norms else 0,
            norms[1].data_ptr() if norms else 0,
            self.keys.data_ptr(),
            self.values.data_ptr(),
            qkv.shape[0],
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            cos.shape[-1] if positions else 0,
            epsilon,
            offset,
            places.data_ptr(),
        )

    def decode(self, qkv: Tensor, output: Tensor, decodes: Decodes, shape: Shape) -> None:
        from workers.generation.engine.cpu.attend import ATTEND, scratch
        from workers.generation.engine.cpu.scalar import bits

        count, width = decodes.tables.shape
        memory, users = scratch(shape.heads // shape.kv_heads, width, shape.head_dim)
        ATTEND[cpu.KINDS[qkv.dtype]](
            qkv.data_ptr(),
            self.keys.data_ptr(),
            self.values.data_ptr(),
            output.data_ptr(),
            0,
            count,
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            width,
            (shape.heads + 2 * shape.kv_heads) * shape.head_dim,
            shape.heads * shape.head_dim,
            shape.window,
            bits(shape.scale),
            decodes.rows.data_ptr(),
            decodes.tables.data_ptr(),
            decodes.lengths.data_ptr(),
            memory.data_ptr(),
            users.data_ptr(),
        )


def new_pages(
    blocks: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, kernels: bool
) -> KvPages:
    kind = KernelPages if kernels else KvPages
    return kind(blocks, kv_heads, head_dim, dtype, device)
