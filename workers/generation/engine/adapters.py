"""Many LoRA adapters over one copy of the base: their tensors, and the linear that applies them.

A step's rows of one adapter are contiguous. On a processor they are part of the base's products (the segmented form of
Punica, arXiv 2310.18547), elsewhere each run takes two products of its own. So the cost grows with the tokens, not
with how many adapters there are.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load
from torch import Tensor, nn

from workers.generation.engine.kernel_calls import NOW, Caller
from workers.generation.engine.linear import Product

if TYPE_CHECKING:
    from workers.generation.engine.cpu.low_rank import Changes
    from workers.generation.engine.cuda.slots import AdapterSlots

PREFIX = "base_model.model."
USUAL_RANK = 64  # the registry takes none higher


@dataclass(frozen=True)
class Part:
    """Columns `[begin, begin + width)` of a linear's output are those of the model's linear `name`."""

    name: str
    begin: int
    width: int


@dataclass
class Adapter:
    """`factors`: name of a linear → (A `[rank, in]`, B `[rank, out]` with the scale folded in), or both as the kernel
    packs them; `table` then tells it where they are, `[linears, parts, integers]`. `rank`: the highest.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    table: Tensor | None
    rank: int
    users: int = 0

    @property
    def packed_table(self) -> Tensor:
        assert self.table is not None  # noqa: S101 (adapters of a base with panels have one)
        return self.table

    @cached_property
    def bytes(self) -> int:
        """Its factors never change, and the bank asks all that are resident at the end of each request."""
        return sum(a.nbytes + b.nbytes for a, b in self.factors.values())


@dataclass(frozen=True)
class Run:
    """Rows `[begin, end)` of the pack belong to `adapter`."""

    begin: int
    end: int
    adapter: Adapter


@dataclass
class StepAdapters:
    """Which rows of the present step use which adapter, shared with every adapter-aware linear of a model.

    Where our kernel multiplies: `owners` (place in `tables` of each row's adapter, or -1); elsewhere `runs`, or `slots`
    in steps that are recorded.
    """

    runs: list[Run] = field(default_factory=list)
    slots: "AdapterSlots | None" = None
    owners: Tensor | None = None
    tables: Tensor | None = None
    rank: int = 0

    @property
    def room(self) -> int:
        """For ranks of a row's low-rank products; 0: no adapters in this step's products."""
        return 0 if self.owners is None or self.rank == 0 else max(self.rank, USUAL_RANK)

    def arguments(self) -> dict[str, int]:
        """What the kernels take of a step, by name."""
        if self.owners is None or self.tables is None:
            return {}
        return {
            "owners": self.owners.data_ptr(),
            "adapters": self.tables.data_ptr(),
            "stride": self.tables.stride(0),
            "rank": self.rank,
        }

    def set(self, runs: list[Run], rows: int, panels: bool) -> None:
        self.runs, self.owners, self.tables = ([] if panels else runs), None, None
        if panels and runs:
            self.owners = torch.full((rows,), -1)
            for at, run in enumerate(runs):
                self.owners[run.begin : run.end] = at
            self.tables = torch.stack([run.adapter.packed_table for run in runs])
            self.rank = max(run.adapter.rank for run in runs)


class AdapterLinear(nn.Module):
    """Replaces one linear of the model, or several that read the same input: their products are one product."""

    def __init__(self, index: int, parts: list[Part], product: Product, step: StepAdapters) -> None:
        super().__init__()
        self.index, self.parts, self.product, self.step = index, parts, product, step

    def forward(self, hidden: Tensor, onto: Tensor | None = None, on: Caller = NOW) -> Tensor:
        """hidden: [1, total_tokens, in] → [1, total_tokens, out], added to `onto` where that is given."""
        result = self.product(hidden, onto, self._changes(on), on)
        if self.step.slots is not None:
            self.step.slots.add(self, hidden, result)
        for run in self.step.runs:
            rows = hidden[0, run.begin : run.end]
            for part in self.parts:
                factors = run.adapter.factors.get(part.name)
                if factors is not None:
                    columns = result[0, run.begin : run.end, part.begin : part.begin + part.width]
                    columns.addmm_(rows @ factors[0].t(), factors[1])
        return result

    def _changes(self, on: Caller) -> "Changes | None":
        tables = self.step.tables
        if tables is None or not self.step.room:
            return None
        from workers.generation.engine.cpu.low_rank import Changes

        values = {name: on.varying(name, value) for name, value in self.step.arguments().items()}
        return Changes(**values, begin=self.index * tables.stride(1), parts=len(self.parts), room=self.step.room)


class AdapterFormat:
    """What adapters of one base look like: its linears by name, as the model runner replaced them."""

    def __init__(self, linears: list[AdapterLinear], dtype: torch.dtype, device: torch.device, panels: bool) -> None:
        self._places = {
            part.name: (linear.index, at, part) for linear in linears for at, part in enumerate(linear.parts)
        }
        self._widths = {part.name: linear.product.in_features for linear in linears for part in linear.parts}
        self._shape = (len(linears), max((len(linear.parts) for linear in linears), default=0))
        self._dtype, self._device, self._panels = dtype, device, panels

    def read(self, folder: Path) -> Adapter:
        """A plain PEFT LoRA folder as tensors. Raises ValueError for what this base cannot carry."""
        torch.set_num_threads(1)  # of the calling thread; the engine's has its own (see TorchEngine._load)
        config = json.loads((folder / "adapter_config.json").read_text())
        factors = {}
        # Not by safe_open: each tensor it gives leaves a number or two behind for ever (safetensors 0.8).
        weights = load((folder / "adapter_model.safetensors").read_bytes())
        keys = set(weights)
        names = sorted(key for key in keys if key.endswith(".lora_A.weight"))
        if keys != {*names, *(key.replace(".lora_A.", ".lora_B.") for key in names)}:
            raise ValueError("the adapter holds tensors that are no pairs of LoRA factors")
        for key in names:
            name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            a, b = weights[key], weights[key.replace(".lora_A.", ".lora_B.")]
            place = self._places.get(name)
            # The kernel reads by bare addresses: nothing may be taken on trust here.
            fits = place is not None and a.shape[1:] == (self._widths[name],) and b.shape == (place[2].width, len(a))
            if place is None or not fits:
                raise ValueError(f"the adapter's {name} does not fit the base")
            up = b.t().float() * _scale(config, a.shape[0])
            factors[name] = self._own(a), self._own(up)
        return self._packed(factors) if self._panels else Adapter(factors, None, highest_rank(factors))

    def _packed(self, factors: dict[str, tuple[Tensor, Tensor]]) -> Adapter:
        from workers.generation.engine.cpu.low_rank import ENTRY, entry, pack_down, pack_up

        table = torch.zeros(*self._shape, ENTRY, dtype=torch.int64)
        packed = {name: (pack_down(a), pack_up(b, self._places[name][2].begin)) for name, (a, b) in factors.items()}
        for name, (a, b) in packed.items():
            linear, at, part = self._places[name]
            table[linear, at] = torch.tensor(entry(a, b, part.begin))
        return Adapter(packed, table, highest_rank(packed))

    def _own(self, factor: Tensor) -> Tensor:
        """A copy of its own: the kernel reads it by address."""
        return factor.to(device=self._device, dtype=self._dtype, copy=True).contiguous()


def highest_rank(factors: dict[str, tuple[Tensor, Tensor]]) -> int:
    return max((a.shape[0] for a, _ in factors.values()), default=0)


def _scale(config: dict[str, object], rank: int) -> float:
    """alpha / rank, or alpha / √rank for rank-stabilised LoRA (arXiv 2312.03732). The registry refuses patterns."""
    return float(str(config.get("lora_alpha", 8))) / (rank**0.5 if config.get("use_rslora") else rank)
