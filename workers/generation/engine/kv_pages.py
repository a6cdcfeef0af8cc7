"""Keys and values of one layer in pages of BLOCK_SIZE positions: what every kind of pages answers, and which to take.

Memory is paid for as pages are touched. Only finite numbers are stored: pages are reused, and 0 · NaN in a hidden
place would reach another sequence.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from workers.generation.engine.kv_cache import BLOCK_SIZE


@dataclass(frozen=True)
class Shape:
    """One attention layer's form. `window`: how many positions back it looks, itself included; 0 is all."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0


@dataclass(frozen=True)
class PageForm:
    """What every layer's pages hold: `blocks` of BLOCK_SIZE positions, keys and values of `kv_heads` heads each."""

    blocks: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Spans:
    """A step's sequences: rows `[begin, begin + count)` of the pack continue one from position `start`, `[n]` each.

    `tables`: `[n, blocks]`, the sequences' blocks from position 0 on, padded with 0.
    """

    begins: np.ndarray
    counts: np.ndarray
    starts: np.ndarray
    tables: np.ndarray


class KvPages(Protocol):
    """One layer. `qkv`: `[rows, heads + 2 · kv_heads, head_dim]` of the whole pack."""

    def plan(self, spans: Spans) -> Any:
        """What all layers of a step share, made once."""
        ...

    def store(self, qkv: Tensor, places: Tensor, shape: Shape) -> None:
        """Keep this step's keys and values. `places`: block · BLOCK_SIZE + position in it, `[rows]`."""
        ...

    def attend(self, qkv: Tensor, plan: Any, shape: Shape) -> Tensor:
        """Causal attention of rows whose keys and values are stored → `[rows, heads, head_dim]`."""
        ...


def places_of(tables: np.ndarray, owners: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Where rows' positions lie in the cache, `[rows]`: block · BLOCK_SIZE + offset. `owners`: each row's table."""
    places: np.ndarray = tables[owners, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    return places


def new_pages(form: PageForm, kernels: bool) -> KvPages:
    """One layer's. `kernels`: compiled ones serve this device."""
    if kernels:
        from workers.generation.engine.cpu.pages import KernelPages

        return KernelPages(form.blocks, form.kv_heads, form.head_dim, form.dtype)
    from workers.generation.engine.torch_pages import TorchPages

    return TorchPages(form)
