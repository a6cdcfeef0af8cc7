"""The only place where a batch meets the model: packs it, runs one forward pass, returns logits."""

from collections.abc import Sequence as Seq
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from workers.generation.engine import attention, cpu
from workers.generation.engine.adapter_bank import AdapterBank
from workers.generation.engine.adapters import Adapter, AdapterFormat, Run, StepAdapters
from workers.generation.engine.batch import Batch, Chunk
from workers.generation.engine.kv_cache import BLOCK_SIZE
from workers.generation.engine.kv_pages import KvPages, PageForm, Spans, new_pages, places_of
from workers.generation.engine.linear import Form
from workers.generation.engine.surgery import Surgeon

if TYPE_CHECKING:
    from workers.generation.engine.cuda.graphs import DecodeGraphs

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def choose_device(device: str) -> torch.device:
    """`auto`: CUDA when there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto`: bf16 where the hardware multiplies it, else fp32."""
    if dtype != "auto":
        return DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    has = torch.cpu.get_capabilities()
    return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else torch.float32


class ModelRunner:
    """One base in memory, its KV pages, and the adapters that ride on it."""

    def __init__(
        self,
        folder: Path,
        bank: AdapterBank,
        *,
        device: str,
        dtype: str,
        blocks: int,
        sequences: int,
        kernels: bool = True,
        graphs: bool = True,
        int8: bool = False,
    ) -> None:
        """`sequences`: as many decode in one step. `kernels` False: torch operations only, as on a device that the
        compiled kernels do not serve. `graphs` False: the same for what a GPU would record.

        Raises ValueError for `int8` weights without them.
        """
        self.device, self.bank = choose_device(device), bank
        self.dtype = choose_dtype(dtype, self.device)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=self.dtype, attn_implementation=attention.NAME, local_files_only=True
        )
        self.model = model.to(self.device).eval()
        config = self.model.config
        self.kernels = kernels and cpu.serves(self.device, self.dtype, self.model.config)
        if int8 and not self.kernels:
            raise ValueError("weights in int8 are for processors, with numba installed and heads of even width")
        form = Form.INT8 if int8 else Form.LIBRARY
        if self.kernels and not int8 and cpu.multiplies(self.dtype):
            form = Form.PANELS
        if self.kernels:
            cpu.prepare(self.dtype, form)
        self._panels = form is not Form.LIBRARY
        self._step = StepAdapters()
        surgeon = Surgeon(self.model, self._step, self.kernels, form)
        self._linears = surgeon.operate()
        self._decoder = surgeon.decoder()
        self._format = AdapterFormat(self._linears, self.dtype, self.device, self._panels)
        self.context_length: int = config.max_position_embeddings
        self.vocabulary: int = config.vocab_size
        heads = config.num_attention_heads
        kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
        head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads
        self._form = PageForm(blocks, kv_heads, head_dim, self.dtype, self.device)
        self._graphs: DecodeGraphs | None = None
        self._pages: list[KvPages] = []
        if graphs and self.device.type == "cuda":
            self.use_graphs(sequences)
        if not self._pages:
            self._pages = [new_pages(self._form, self.kernels) for _ in range(config.num_hidden_layers)]

    @property
    def is_steady(self) -> bool:
        """A row's logits are the same bits whatever other rows share the step."""
        return self._decoder is not None and self._decoder.is_steady

    def use_graphs(self, sequences: int) -> None:
        """Steps that only decode are recorded now and replayed from here on, if this device can."""
        from workers.generation.engine.cuda.check import record_steps

        self._graphs = record_steps(self.model, self._form, sequences, self._linears, self._step)
        if self._graphs is not None:
            self._pages = list(self._graphs.pages)

    def read_adapter(self, folder: Path) -> Adapter:
        """Tensors of an adapter for this base; safe beside a running step."""
        return self._format.read(folder)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits `[rows, vocabulary]`: those of a chunk that are sampled from, or all of one that scores. The next call
        may write where they are.
        """
        if not batch.chunks:
            return torch.empty(0, self.vocabulary)
        ids: list[int] = []
        wanted: list[int] = []
        for chunk in batch.chunks:
            ids += chunk.ids
            wanted += range(len(ids) - (chunk.length if chunk.scores else chunk.row_count), len(ids))
        positions, places, spans = self._pack(batch.chunks, len(ids))
        if self._graphs is not None and (replayed := self._graphs.logits(batch, places, spans, self.bank)) is not None:
            return replayed
        self._step.set(self._runs(batch.chunks), len(ids), self._panels)
        step = attention.PackedStep(self._pages, self._tensor(places), self._pages[0].plan(spans))
        tokens, at, rows = self._tensor(ids), self._tensor(positions), self._tensor(wanted)
        if self._decoder is not None:
            return self._decoder.logits(tokens, at, rows, step)
        output = self.model(
            input_ids=tokens[None], position_ids=at[None], use_cache=False, logits_to_keep=rows, step=step
        )
        logits: Tensor = output.logits[0].float()
        return logits

    def _tensor(self, values: Seq[int] | np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(self.device)

    def _runs(self, chunks: Seq[Chunk]) -> list[Run]:
        runs, begin = [], 0
        for digest, group in groupby(chunks, key=lambda chunk: chunk.sequence.adapter):
            end = begin + sum(chunk.length for chunk in group)
            if digest is not None:
                runs.append(Run(begin, end, self.bank.get(digest)))
            begin = end
        return runs

    def _pack(self, chunks: Seq[Chunk], rows: int) -> tuple[np.ndarray, np.ndarray, Spans]:
        """The rows' positions, their places in the cache, and what they read of it."""
        counts = np.array([chunk.length for chunk in chunks])
        starts = np.array([chunk.start for chunk in chunks])
        begins, owners = np.cumsum(counts) - counts, np.repeat(np.arange(len(chunks)), counts)
        positions = np.arange(rows) + (starts - begins)[owners]
        tables = np.zeros((len(chunks), int(positions.max()) // BLOCK_SIZE + 1), dtype=np.int64)
        for table, chunk in zip(tables, chunks, strict=True):
            blocks = chunk.sequence.blocks[: len(table)]
            table[: len(blocks)] = blocks
        return positions, places_of(tables, owners, positions), Spans(begins, counts, starts, tables)
