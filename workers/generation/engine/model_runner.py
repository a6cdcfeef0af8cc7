"""The only place where a batch meets the model: packs it, runs one forward pass, returns logits."""

from collections.abc import Sequence as Seq
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from workers.generation.engine import attention
from workers.generation.engine.adapters import (
    Adapter,
    AdapterBank,
    Segment,
    StepSegments,
    read_adapter,
    replace_linears,
)
from workers.generation.engine.scheduler import Batch, Chunk

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
    """One base in memory, its KV tensors, and the adapters that ride on it."""

    def __init__(
        self, folder: Path, bank: AdapterBank, *, device: str, dtype: str, blocks: int, block_size: int
    ) -> None:
        self.device, self.block_size, self.bank = choose_device(device), block_size, bank
        self.dtype = choose_dtype(dtype, self.device)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=self.dtype, attn_implementation=attention.NAME, local_files_only=True
        )
        self.model = model.to(self.device).eval()
        self._step = StepSegments()
        self.linears = replace_linears(self.model, self._step)
        config = self.model.config
        heads = config.num_attention_heads
        self.kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.context_length: int = config.max_position_embeddings
        self.vocabulary: int = config.vocab_size
        shape = (blocks, self.kv_heads, block_size, head_dim)
        self._layers = [attention.LayerCache(shape, self.dtype, self.device) for _ in range(config.num_hidden_layers)]

    def read_adapter(self, folder: Path) -> Adapter:
        """Tensors of an adapter for this base; safe beside a running step."""
        return read_adapter(folder, self.linears, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits `[rows, vocabulary]` in fp32: one row per chunk that samples, every row of a chunk that scores."""
        if not batch.chunks:
            return torch.empty(0, self.vocabulary)
        ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        for chunk in batch.chunks:
            end = chunk.start + chunk.length
            ids += chunk.sequence.tokens[chunk.start : end]
            positions += range(chunk.start, end)
            if chunk.scores:
                last += range(len(ids) - chunk.length, len(ids))
            elif chunk.samples:
                last.append(len(ids) - 1)
        self._step.segments = self._segments(batch.chunks)
        output = self.model(
            input_ids=self._tensor([ids]),
            position_ids=self._tensor([positions]),
            use_cache=False,
            logits_to_keep=self._tensor(last),
            step=self._pack(batch.chunks),
        )
        return output.logits[0].float()

    def _tensor(self, values: Seq[int] | Seq[Seq[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _segments(self, chunks: Seq[Chunk]) -> list[Segment]:
        segments, begin = [], 0
        for digest, group in groupby(chunks, key=lambda chunk: chunk.sequence.adapter):
            end = begin + sum(chunk.length for chunk in group)
            if digest is not None:
                segments.append(Segment(begin, end, self.bank.get(digest)))
            begin = end
        return segments

    def _pack(self, chunks: Seq[Chunk]) -> attention.PackedStep:
        places: list[int] = []
        prefills: list[attention.Prefill] = []
        decodes: list[tuple[int, Chunk]] = []
        row = 0
        for chunk in chunks:
            blocks = chunk.sequence.blocks
            for position in range(chunk.start, chunk.start + chunk.length):
                block, offset = divmod(position, self.block_size)
                places.append(blocks[block] * self.kv_heads * self.block_size + offset)
            if chunk.length == 1 and chunk.start > 0:
                decodes.append((row, chunk))
            else:
                table = self._tensor(blocks[: -(-(chunk.start + chunk.length) // self.block_size)])
                prefills.append(attention.Prefill(row, row + chunk.length, chunk.start, table))
            row += chunk.length
        heads = torch.arange(self.kv_heads, device=self.device) * self.block_size
        rows = (self._tensor(places)[:, None] + heads).flatten()
        decodes.sort(key=lambda item: item[1].start)
        starts = range(0, len(decodes), attention.BUCKET)
        buckets = [self._bucket(decodes[at : at + attention.BUCKET]) for at in starts]
        return attention.PackedStep(self._layers, rows, prefills, buckets)

    def _bucket(self, decodes: Seq[tuple[int, Chunk]]) -> attention.DecodeBucket:
        """Rows of similar length; short tables repeat block 0, whose places the mask hides."""
        lengths = self._tensor([chunk.start + 1 for _, chunk in decodes])
        width = -(-max(chunk.start + 1 for _, chunk in decodes) // self.block_size)
        tables = [(chunk.sequence.blocks[:width] + [0] * width)[:width] for _, chunk in decodes]
        hidden = torch.arange(width * self.block_size, device=self.device)[None] >= lengths[:, None]
        rows = self._tensor([row for row, _ in decodes])
        return attention.DecodeBucket(rows, self._tensor(tables), hidden[:, None])
