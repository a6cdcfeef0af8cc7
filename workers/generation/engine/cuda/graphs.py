"""Decoding steps as CUDA graphs: all launches of a step recorded once per number of sequences, then replayed as one.

A decoding step of a small model is hundreds of launches of little work each, and Python cannot issue them as fast as a
GPU does them. What differs from step to step lies in buffers that stay where they are.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import structlog
import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.generation.engine.adapter_bank import AdapterBank
from workers.generation.engine.adapters import AdapterLinear, StepAdapters
from workers.generation.engine.attention import PackedStep
from workers.generation.engine.cuda.pages import DecodeTables, FlexPages
from workers.generation.engine.cuda.slots import AdapterSlots
from workers.generation.engine.kv_cache import BLOCK_SIZE
from workers.generation.engine.kv_pages import KvPages, PageForm, Spans
from workers.generation.engine.scheduler import Batch
from workers.generation.engine.torch_pages import TorchPages, decoding

log = structlog.get_logger(__name__)

WARMING = 3  # passes before one is recorded: libraries choose their kernels and ask for their memory
# Between a recorded step and the same one without graphs, of the greatest logit: bf16's 2⁻⁸ through some layers.
TOLERANCE = 0.05
PROBE = 40  # tokens


class DecodeGraphs:
    """Recorded steps of 1, 2, 4, … sequences, each with and without adapters. On other devices than CUDA a step's calls
    are not recorded but made.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        form: PageForm,
        sequences: int,
        linears: Sequence[AdapterLinear],
        adapters: StepAdapters,
    ) -> None:
        """`sequences`: the most of one step."""
        self._model, self._form, self._adapters = model, form, adapters
        self._tables = tables = DecodeTables(sequences, form.blocks, form.device)
        self.pages = [FlexPages(form, tables) for _ in range(model.config.num_hidden_layers)]
        rows = tables.sizes[-1]
        self._ids, self._places = (torch.zeros(rows, dtype=torch.int64, device=form.device) for _ in range(2))
        self._slots = AdapterSlots(linears, rows, form.dtype, form.device)
        self._pool = torch.cuda.graph_pool_handle() if form.device.type == "cuda" else None
        # The largest first: the smaller find their memory in the same pool.
        self._steps = {
            (size, with_adapters): self._record(size, with_adapters)
            for size in reversed(tables.sizes)
            for with_adapters in (True, False)
        }

    def logits(self, batch: Batch, places: np.ndarray, spans: Spans, bank: AdapterBank) -> Tensor | None:
        """`[sequences, vocabulary]`, in memory that the next step writes again; None where the batch does more than
        decode, or has adapters that find no slot.
        """
        chunks = batch.chunks
        if not all(decoding(spans)) or not all(chunk.samples and not chunk.scores for chunk in chunks):
            return None
        adapters = [chunk.sequence.adapter for chunk in chunks]
        if not self._slots.take(adapters, bank):
            return None
        ids = np.array([chunk.sequence.tokens[chunk.start] for chunk in chunks])
        return self._replay(ids, places, spans, any(adapter is not None for adapter in adapters))

    def difference(self) -> float:
        """How far a replayed step is from the same one as plain operations: the greatest distance of two logits, in
        parts of the greatest logit. Nothing else may be in the cache.
        """
        blocks = -(-PROBE // BLOCK_SIZE)
        plain: list[KvPages] = [TorchPages(replace(self._form, blocks=blocks)) for _ in self.pages]
        table = np.arange(blocks)[None]
        ids = np.arange(1, PROBE + 1) % int(self._model.config.vocab_size)
        prompt = Spans(np.array([0]), np.array([PROBE - 1]), np.array([0]), table)
        last = Spans(np.array([0]), np.array([1]), np.array([PROBE - 1]), table)
        for layers in (plain, list[KvPages](self.pages)):
            self._plainly(ids[:-1], prompt, layers)
        expected = self._plainly(ids[-1:], last, plain)
        got = self._replay(ids[-1:], np.array([PROBE - 1]), last, adapters=False)
        return float((got - expected).abs().max() / expected.abs().max())

    def _plainly(self, ids: np.ndarray, spans: Spans, layers: list[KvPages]) -> Tensor:
        """One sequence whose positions are its places → the last row's logits, `[1, vocabulary]`."""
        places = torch.arange(int(spans.starts[0]), int(spans.starts[0]) + len(ids), device=self._ids.device)
        step = PackedStep(layers, places, layers[0].plan(spans))
        return self._forward(torch.from_numpy(ids).to(places.device), places, step)[-1:]

    def _replay(self, ids: np.ndarray, places: np.ndarray, spans: Spans, adapters: bool) -> Tensor:
        n, size = len(ids), self._tables.size(len(ids))
        self._tables.set(spans.starts, spans.tables)
        for buffer, values, rest in ((self._ids, ids, 0), (self._places, places, self._tables.spare_place)):
            filled = np.full(size, rest, dtype=np.int64)
            filled[:n] = values
            buffer[:size].copy_(torch.from_numpy(filled))
        return self._steps[size, adapters]()[:n]

    def _forward(self, ids: Tensor, positions: Tensor, step: PackedStep) -> Tensor:
        output = self._model(input_ids=ids[None], position_ids=positions[None], use_cache=False, step=step)
        logits: Tensor = output.logits[0].float()
        return logits

    def _record(self, size: int, with_adapters: bool) -> Callable[[], Tensor]:
        def step() -> Tensor:
            self._adapters.set([], size, panels=False)
            self._adapters.slots = self._slots if with_adapters else None
            packed = PackedStep(list(self.pages), self._places[:size], None)
            try:
                return self._forward(self._ids[:size], self._tables.positions[:size], packed)
            finally:
                self._adapters.slots = None

        if self._pool is None:
            return step
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMING):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: adapters are read beside the engine.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = step()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


@torch.inference_mode()
def record_steps(
    model: PreTrainedModel,
    form: PageForm,
    sequences: int,
    linears: Sequence[AdapterLinear],
    adapters: StepAdapters,
) -> DecodeGraphs | None:
    """None where this device cannot, whatever stands against it (a driver, a compiler, logits that differ): plain
    operations serve then, and the log says why.
    """
    begun = time.perf_counter()
    try:
        graphs = DecodeGraphs(model, form, sequences, linears, adapters)
        difference = graphs.difference()
    except Exception as error:
        log.exception("decode_graphs_failed", error=str(error))
        return None
    if not difference <= TOLERANCE:
        log.error("decode_graphs_differ", difference=difference)
        return None
    log.info("decode_graphs_recorded", seconds=round(time.perf_counter() - begun, 1), difference=difference)
    return graphs
