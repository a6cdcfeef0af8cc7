"""Pages that decoding rows read where they lie, by FlexAttention (arXiv 2412.05496): its block mask is the block table.

Every tensor that a decoding row's attention reads stays at its address, and every shape is one of few, so that a graph
can hold the call.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from workers.generation.engine.kv_cache import BLOCK_SIZE
from workers.generation.engine.kv_pages import PageForm, Shape, Spans
from workers.generation.engine.torch_pages import Decodes, Plan, TorchPages, decoding

QUERY_BLOCK = 128  # of FlexAttention's mask; the query heads of a group are fewer
KERNEL_OPTIONS = {"BLOCK_N": BLOCK_SIZE}  # keys that the kernel takes at a time: a page
# Compiled per number of sequences and window; torch's overloads do not know the limit that they document.
attend_pages = torch.compile(flex_attention, dynamic=False, fullgraph=True, recompile_limit=64)  # type: ignore[call-overload]


class DecodeTables:
    """Where up to `most` decoding sequences stand and which pages are theirs, shared by all layers.

    One block more than the cache has belongs to nobody: rows that only fill up a step write and read there.
    """

    def __init__(self, most: int, blocks: int, device: torch.device) -> None:
        self.sizes = [1 << power for power in range((most - 1).bit_length() + 1)]
        largest = self.sizes[-1]
        self.positions = torch.zeros(largest, dtype=torch.int64, device=device)
        self._counts = torch.ones(largest, 1, 1, dtype=torch.int32, device=device)
        # As wide as there are blocks: FlexAttention takes that for the length of the keys.
        self._blocks = torch.full((largest, 1, 1, blocks + 1), blocks, dtype=torch.int32, device=device)
        # Which part of its sequence a block holds: the same for all that share it, for they share it as a prefix.
        self._order = torch.zeros(blocks + 1, dtype=torch.int32, device=device)
        self._host_order = np.zeros(blocks + 1, dtype=np.int32)
        self._nobodys = blocks
        self._masks: dict[tuple[int, int, int], BlockMask] = {}

    @property
    def spare_place(self) -> int:
        return self._nobodys * BLOCK_SIZE

    def size(self, sequences: int) -> int:
        """The least shape that holds so many."""
        return next(size for size in self.sizes if size >= sequences)

    def set(self, positions: np.ndarray, tables: np.ndarray) -> None:
        """positions: `[n]`; tables: `[n, blocks]`, padded with anything. Rows from n on to the next size read the spare
        page.
        """
        n, width = tables.shape
        size = self.size(n)
        counts = positions // BLOCK_SIZE + 1
        own = np.arange(width) < counts[:, None]
        self._host_order[tables[own]] = np.broadcast_to(np.arange(width), tables.shape)[own]
        self._order.copy_(torch.from_numpy(self._host_order))
        padded = np.full((size, width), self._nobodys, dtype=np.int32)
        padded[:n][own] = tables[own]
        self._blocks[:size, 0, 0, :width].copy_(torch.from_numpy(padded))
        self._counts[:size, 0, 0].copy_(torch.from_numpy(filled(counts, size, 1)))
        self.positions[:size].copy_(torch.from_numpy(filled(positions, size, 0)))

    def mask(self, size: int, shape: Shape) -> BlockMask:
        key = size, shape.heads // shape.kv_heads, shape.window
        if key not in self._masks:
            length = self._blocks.shape[-1] * BLOCK_SIZE
            self._masks[key] = BlockMask.from_kv_blocks(
                self._counts[:size],
                self._blocks[:size],
                BLOCK_SIZE=(QUERY_BLOCK, BLOCK_SIZE),
                mask_mod=self._visible(shape.window),
                seq_lengths=(key[1], length),
                compute_q_blocks=False,
            )
        return self._masks[key]

    def _visible(self, window: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        order, positions = self._order, self.positions

        def visible(sequence: Tensor, head: Tensor, query: Tensor, place: Tensor) -> Tensor:
            """`place` is one of the cache, its page among those of `sequence`."""
            at = order[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
            seen = at <= positions[sequence]
            return seen & (at > positions[sequence] - window) if window else seen

        return visible


class FlexPages(TorchPages):
    """As TorchPages, with a page more that is nobody's. `attend` without a plan: every row decodes, as `tables` say."""

    def __init__(self, form: PageForm, tables: DecodeTables) -> None:
        super().__init__(replace(form, blocks=form.blocks + 1))
        self._tables = tables

    def plan(self, spans: Spans) -> Plan:
        single = decoding(spans)
        if single.any():
            self._tables.set(spans.starts[single], spans.tables[single])
        return super().plan(spans)

    def attend(self, qkv: Tensor, plan: Plan | None, shape: Shape) -> Tensor:
        return self._flex(qkv[:, : shape.heads], shape) if plan is None else super().attend(qkv, plan, shape)

    def _decode(self, query: Tensor, decodes: Decodes, shape: Shape) -> Tensor:
        n = query.shape[0]
        padded = query.new_zeros(self._tables.size(n), *query.shape[1:])
        padded[:n] = query
        return self._flex(padded, shape)[:n]

    def _flex(self, query: Tensor, shape: Shape) -> Tensor:
        """query: [size, heads, head_dim] → the same. The heads that share keys stand as queries of one head."""
        size = query.shape[0]
        attended: Tensor = attend_pages(
            # Compiled for its strides too: wherever the queries come from, they are the same.
            query.contiguous().view(size, shape.kv_heads, -1, shape.head_dim),
            self.keys[None],
            self.values[None],
            block_mask=self._tables.mask(size, shape),
            scale=shape.scale,
            kernel_options=KERNEL_OPTIONS,
        )
        return attended.reshape(query.shape)


def filled(values: np.ndarray, size: int, rest: int) -> np.ndarray:
    """Up to `size` with `rest`; int64."""
    return np.concatenate([values, np.full(size - len(values), rest)]).astype(np.int64, copy=False)
