"""Every recorded step held against the same one as plain operations, at the start: what serves a GPU has as many parts
that may fail as there are devices, drivers and compilers.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import structlog
import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.generation.engine.adapter_bank import AdapterBank
from workers.generation.engine.adapters import Adapter, AdapterLinear, Run, StepAdapters
from workers.generation.engine.attention import PackedStep
from workers.generation.engine.cuda import slots
from workers.generation.engine.cuda.graphs import DecodeGraphs, forward
from workers.generation.engine.kv_cache import BLOCK_SIZE
from workers.generation.engine.kv_pages import KvPages, PageForm, Spans, places_of
from workers.generation.engine.torch_pages import TorchPages

log = structlog.get_logger(__name__)

TOLERANCE = 0.05  # of the greatest logit: bf16's 2⁻⁸ through some layers
BLOCKS = 2  # of each sequence, the second begun
ADAPTER = "probe"


@torch.inference_mode()
def record_steps(
    model: PreTrainedModel,
    form: PageForm,
    sequences: int,
    linears: Sequence[AdapterLinear],
    adapters: StepAdapters,
) -> DecodeGraphs | None:
    """Steps of up to so many sequences. None where they cannot be recorded here, or are not what plain operations make
    them: those serve then, and the log says why. Raises what the device itself says when it can do no more.
    """
    begun = time.perf_counter()
    try:
        graphs = DecodeGraphs(model, form, sequences, linears, adapters)
        difference = Check(model, form, linears, adapters, graphs).difference()
    except Exception as error:
        log.exception("decode_graphs_failed", error=str(error))
        if form.device.type == "cuda":
            torch.cuda.synchronize()
        return None
    if not difference <= TOLERANCE:
        log.error("decode_graphs_differ", difference=difference)
        return None
    log.info("decode_graphs_recorded", seconds=round(time.perf_counter() - begun, 1), difference=difference)
    return graphs


class Check:
    """Sequences of unequal lengths with pages anywhere, every other one with an adapter; fewer than a step is for."""

    def __init__(
        self,
        model: PreTrainedModel,
        form: PageForm,
        linears: Sequence[AdapterLinear],
        adapters: StepAdapters,
        graphs: DecodeGraphs,
    ) -> None:
        self._model, self._form, self._adapters, self._graphs = model, form, adapters, graphs
        self._adapter = new_adapter(linears, form)
        self._bank = AdapterBank(0)
        self._bank.put(ADAPTER, self._adapter)

    def difference(self) -> float:
        """The greatest of all steps': of two logits, in parts of the greatest. The cache is written to."""
        return float(np.max([self._of(size, adapters) for size, adapters in self._graphs.steps]))  # NaN if one is

    def _of(self, size: int, adapters: bool) -> float:
        n = min(size // 2 + 1, self._form.blocks // BLOCKS)
        lengths = BLOCK_SIZE + 1 + np.arange(n) % (BLOCK_SIZE - 1)
        own = np.random.default_rng(size).permutation(self._form.blocks)[: n * BLOCKS].reshape(n, BLOCKS)
        ids = np.random.default_rng(size).integers(1, self._model.config.vocab_size, (n, 2 * BLOCK_SIZE))
        plain: list[KvPages] = [TorchPages(replace(self._form, blocks=n * BLOCKS)) for _ in self._graphs.pages]
        tables = np.arange(n * BLOCKS).reshape(n, BLOCKS)
        prompts = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        self._plainly(prompts, np.zeros(n, dtype=np.int64), tables, plain, adapters=False)
        self._plainly(prompts, np.zeros(n, dtype=np.int64), own, list(self._graphs.pages), adapters=False)
        last = [row[length : length + 1] for row, length in zip(ids, lengths, strict=True)]
        expected = self._plainly(last, lengths, tables, plain, adapters)
        spans = Spans(np.arange(n), np.ones(n, dtype=np.int64), lengths, own)
        self._graphs.slots.take([ADAPTER if adapters and at % 2 == 0 else None for at in range(n)], self._bank)
        got = self._graphs.replay(np.concatenate(last), places_of(own, np.arange(n), lengths), spans, adapters)
        difference = float((got - expected).abs().max() / expected.abs().max())
        self._graphs.slots.forget()
        return difference

    def _plainly(
        self, pieces: list[np.ndarray], starts: np.ndarray, tables: np.ndarray, layers: list[KvPages], adapters: bool
    ) -> Tensor:
        """Each sequence's next tokens → logits, `[all rows, vocabulary]`."""
        counts = np.array([len(piece) for piece in pieces])
        begins, owners = np.cumsum(counts) - counts, np.repeat(np.arange(len(counts)), counts)
        positions = np.concatenate([start + np.arange(count) for start, count in zip(starts, counts, strict=True)])
        rows = np.concatenate(pieces), positions, places_of(tables, owners, positions)
        ids, where, at = (torch.from_numpy(each).to(self._form.device) for each in rows)
        runs = [Run(row, row + 1, self._adapter) for row in range(0, len(pieces), 2)] if adapters else []
        self._adapters.set(runs, len(ids), panels=False)
        step = PackedStep(layers, at, layers[0].plan(Spans(begins, counts, starts, tables)))
        return forward(self._model, ids, where, step)


def new_adapter(linears: Sequence[AdapterLinear], form: PageForm) -> Adapter:
    """That changes every linear a little."""
    factors = {}
    for linear in linears:
        inner, outer = linear.product.in_features, linear.product.out_features
        down, up = (torch.randn(slots.RANK, width, device=form.device) / width**0.5 for width in (inner, outer))
        factors[linear.parts[0].name] = down.to(form.dtype), up.to(form.dtype)
    return Adapter(factors, None, slots.RANK)
