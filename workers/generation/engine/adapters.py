"""Many LoRA adapters over one copy of the base: the resident bank and the linear that applies them.

The tokens of one adapter are contiguous in a step's pack, so an adapter costs two small products per
linear and step on its own rows only (the segmented form of Punica, arXiv 2310.18547).
"""

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from workers.generation.engine.protocol import AdapterNotLoaded

PREFIX = "base_model.model."


@dataclass
class Adapter:
    """`pairs`: full name of a linear → (A `[in, rank]`, B `[rank, out]` with the scale folded in)."""

    pairs: dict[str, tuple[Tensor, Tensor]]
    users: int = 0

    @property
    def bytes(self) -> int:
        return sum(a.nbytes + b.nbytes for a, b in self.pairs.values())


@dataclass(frozen=True)
class Segment:
    """Rows `[begin, end)` of the pack belong to `adapter`."""

    begin: int
    end: int
    adapter: Adapter


@dataclass
class StepSegments:
    """The present step's segments, shared with every adapter-aware linear of a model."""

    segments: list[Segment] = field(default_factory=list)


class AdapterLinear(nn.Module):
    """Replaces `nn.Linear` and GPT-2's `Conv1D`: the base's product, plus each segment's low-rank product."""

    def __init__(self, name: str, weight: Tensor, bias: Tensor | None, step: StepSegments) -> None:
        super().__init__()
        self.name = name
        self.weight = nn.Buffer(weight, persistent=False)
        self.bias = None if bias is None else nn.Buffer(bias, persistent=False)
        self.step = step

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [1, total_tokens, in] → [1, total_tokens, out]."""
        result = linear(hidden, self.weight, self.bias)
        for segment in self.step.segments:
            pair = segment.adapter.pairs.get(self.name)
            if pair is not None:
                down = hidden[0, segment.begin : segment.end] @ pair[0]
                result[0, segment.begin : segment.end].addmm_(down, pair[1])
        return result


def replace_linears(model: nn.Module, step: StepSegments) -> dict[str, tuple[int, int]]:
    """Swap every linear but the output head; returns name → (out, in) of what adapters may change."""
    replaced = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():  # type: ignore[operator]
            weight = module.weight.detach()
        elif isinstance(module, Conv1D):
            weight = module.weight.detach().t().contiguous()
        else:
            continue
        bias = None if module.bias is None else module.bias.detach()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, AdapterLinear(name, weight, bias, step))
        replaced[name] = (weight.shape[0], weight.shape[1])
    return replaced


def read_adapter(folder: Path, shapes: dict[str, tuple[int, int]], dtype: torch.dtype, device: torch.device) -> Adapter:
    """A plain PEFT LoRA folder as tensors. Raises ValueError for what this base cannot carry."""
    config = json.loads((folder / "adapter_config.json").read_text())
    pairs = {}
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as weights:
        names = sorted(key for key in weights.keys() if key.endswith(".lora_A.weight"))  # noqa: SIM118
        for key in names:
            name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            a = weights.get_tensor(key)
            b = weights.get_tensor(key.replace(".lora_A.", ".lora_B."))
            if shapes.get(name) != (b.shape[0], a.shape[1]):
                raise ValueError(f"the adapter's {name} does not fit the base")
            scale = _scale(config, name, a.shape[0])
            down = a.t().to(device=device, dtype=dtype).contiguous()
            pairs[name] = (down, (b.t().float() * scale).to(device=device, dtype=dtype).contiguous())
    return Adapter(pairs)


def _scale(config: dict[str, object], name: str, rank: int) -> float:
    """alpha / rank, or alpha / √rank for rank-stabilised LoRA (arXiv 2312.03732)."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():  # type: ignore[attr-defined]
        if name == pattern or name.endswith("." + pattern):
            alpha = value
    return float(str(alpha)) / (rank**0.5 if config.get("use_rslora") else rank)


class AdapterBank:
    """Resident adapters by digest, least recently used out first; one in use is never evicted."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._resident: OrderedDict[str, Adapter] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._resident)

    @property
    def bytes(self) -> int:
        with self._lock:
            return sum(adapter.bytes for adapter in self._resident.values())

    def has(self, digest: str) -> bool:
        """Also marks it as just used."""
        with self._lock:
            if digest in self._resident:
                self._resident.move_to_end(digest)
            return digest in self._resident

    def put(self, digest: str, adapter: Adapter) -> None:
        with self._lock:
            self._resident.setdefault(digest, adapter)
            self._resident.move_to_end(digest)
            excess = sum(each.bytes for each in self._resident.values()) - self._budget
            for name, each in list(self._resident.items())[:-1]:
                if excess > 0 and each.users == 0:
                    excess -= self._resident.pop(name).bytes

    def remove(self, digest: str) -> None:
        """Forget an idle adapter; one in use stays until it is evicted later."""
        with self._lock:
            if digest in self._resident and self._resident[digest].users == 0:
                del self._resident[digest]

    def acquire(self, digest: str) -> None:
        """Pin for one request. Raises AdapterNotLoaded."""
        with self._lock:
            if digest not in self._resident:
                raise AdapterNotLoaded(digest)
            self._resident[digest].users += 1
            self._resident.move_to_end(digest)

    def release(self, digest: str) -> None:
        with self._lock:
            self._resident[digest].users -= 1

    def get(self, digest: str) -> Adapter:
        """A pinned adapter."""
        with self._lock:
            return self._resident[digest]
