"""Decoding steps as CUDA graphs: all launches of a step recorded once per number of sequences, then replayed as one.

A decoding step of a small model is hundreds of launches of little work each, and Python cannot issue them as fast as a
GPU does them. What differs from step to step lies in buffers that stay where they are.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.generation.engine.adapter_bank import AdapterBank
from workers.generation.engine.adapters import AdapterLinear, StepAdapters
from workers.generation.engine.attention import PackedStep
from workers.generation.engine.batch import Batch
from workers.generation.engine.cuda.pages import DecodeTables, FlexPages, filled
from workers.generation.engine.cuda.slots import AdapterSlots
from workers.generation.engine.kv_pages import PageForm, Spans
from workers.generation.engine.torch_pages import decoding

WARMING = 3  # passes before one is recorded: libraries choose their kernels and ask for their memory


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
        self._model, self._adapters = model, adapters
        self._tables = tables = DecodeTables(sequences, form.blocks, form.device)
        self.pages = [FlexPages(form, tables) for _ in range(model.config.num_hidden_layers)]
        rows = tables.sizes[-1]
        self._ids, self._places = (torch.zeros(rows, dtype=torch.int64, device=form.device) for _ in range(2))
        self.slots = AdapterSlots(linears, rows, form.dtype, form.device)
        self._recorder = Recorder() if form.device.type == "cuda" else None
        # The largest first: the smaller find their memory in the same pool.
        self.steps = {
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
        if not self.slots.take(adapters, bank):
            return None
        ids = np.array([chunk.sequence.tokens[chunk.start] for chunk in chunks])
        return self.replay(ids, places, spans, any(adapter is not None for adapter in adapters))

    def replay(self, ids: np.ndarray, places: np.ndarray, spans: Spans, adapters: bool) -> Tensor:
        """ids and places: of each sequence's new token. `adapters`: as the slots were told."""
        n, size = len(ids), self._tables.size(len(ids))
        self._tables.set(spans.starts, spans.tables)
        for buffer, values, rest in ((self._ids, ids, 0), (self._places, places, self._tables.spare_place)):
            buffer[:size].copy_(torch.from_numpy(filled(values, size, rest)))
        return self.steps[size, adapters]()[:n]

    def _record(self, size: int, with_adapters: bool) -> Callable[[], Tensor]:
        def step() -> Tensor:
            self._adapters.set([], size, panels=False)
            self._adapters.slots = self.slots if with_adapters else None
            packed = PackedStep(list(self.pages), self._places[:size], None)
            try:
                return forward(self._model, self._ids[:size], self._tables.positions[:size], packed)
            finally:
                self._adapters.slots = None

        return step if self._recorder is None else self._recorder.record(step)


class Recorder:
    """CUDA graphs that share their memory: one is replayed at a time."""

    def __init__(self) -> None:
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """What `step` returned when it was recorded is written again by each replay."""
        before = torch.cuda.current_stream()
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            for _ in range(WARMING):
                step()
        before.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                result = step()
        finally:
            torch.cuda.set_stream(before)  # a recording that fails leaves its own

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def forward(model: PreTrainedModel, ids: Tensor, positions: Tensor, step: PackedStep) -> Tensor:
    """ids and positions: `[rows]` → logits, `[rows, vocabulary]`, fp32."""
    output = model(input_ids=ids[None], position_ids=positions[None], use_cache=False, step=step)
    logits: Tensor = output.logits[0].float()
    return logits
