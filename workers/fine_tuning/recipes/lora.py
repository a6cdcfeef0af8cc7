"""LoRA (arXiv 2106.09685) on every linear of a frozen base, written so that a step is little more than its GEMMs.

PEFT's layers compute the same; on a CPU half of their time goes to casts and to adding whole activations. Here the
low-rank product is added in place (frozen.py), all factors live in one fp32 vector, and files are exactly PEFT's.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.autograd import Function
from transformers.pytorch_utils import Conv1D

from workers.fine_tuning.recipes.devices import leads
from workers.fine_tuning.recipes.frozen import Factors, FrozenProduct, Publisher, frozen_product
from workers.fine_tuning.recipes.trainable import Replicated

PREFIX = "base_model.model."
ALPHA = 16


class LowRankProduct(Function):
    """A frozen product and its factors' change, with gradients for x [tokens, in], A and B only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, product: FrozenProduct, scale: float) -> Tensor:
        y, down = product.forth(x)
        ctx.save_for_backward(x, down)
        ctx.product, ctx.scale = product, scale
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, down = ctx.saved_tensors
        input_gradient, up = ctx.product.back(gradients[0], wanted=ctx.needs_input_grad[0])
        a_gradient = (up.t() @ x).float()
        b_gradient = (down.t() @ gradients[0]).t().float().mul_(ctx.scale)
        return input_gradient, a_gradient, b_gradient, None, None


class LoraLinear(nn.Module):
    """Replaces `nn.Linear` and GPT-2's `Conv1D`; `a`: [rank, in] and `b`: [out, rank] are fp32 views of one vector."""

    a: nn.Parameter
    b: nn.Parameter

    def __init__(self, weight: Tensor, bias: Tensor | None, scale: float) -> None:
        super().__init__()
        self._weight, self._bias, self.scale = weight, bias, scale
        self.shape, self.device = weight.shape, weight.device

    def tie(self, a: nn.Parameter, b: nn.Parameter) -> None:
        """What learns; the weights are then packed, and no more kept than the product needs."""
        self.a, self.b = a, b
        self.product = frozen_product(self._weight, self._bias, Factors(a.detach(), b.detach(), self.scale))
        del self._weight, self._bias

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        product = LowRankProduct.apply(flat, self.a, self.b, self.product, self.scale)
        return product.view(*hidden.shape[:-1], -1)


class Adapter(Replicated):
    """The trainable part of a model: `weights` and `gradients` are flat fp32 vectors, viewed by every LoraLinear."""

    def __init__(
        self, model: nn.Module, rank: int, alpha: float, wanted: Callable[[str], bool], rslora: bool = False
    ) -> None:
        self.rank, self.alpha, self.rslora = rank, alpha, rslora
        self.conv1d = False
        self.layers = self._replace(model, alpha / (math.sqrt(rank) if rslora else rank), wanted)
        shapes = [shape for layer in self.layers.values() for shape in factor_shapes(layer, rank)]
        total = sum(math.prod(shape) for shape in shapes)
        device = next(iter(self.layers.values())).device
        self.weights = torch.zeros(total, device=device)
        self.gradients = torch.zeros(total, device=device)
        begin = 0
        for layer in self.layers.values():
            factors = []
            for shape in factor_shapes(layer, rank):
                end = begin + math.prod(shape)
                factors.append(nn.Parameter(self.weights[begin:end].view(shape)))
                factors[-1].grad = self.gradients[begin:end].view(shape)
                begin = end
            layer.tie(*factors)
        self.publish = Publisher([layer.product for layer in self.layers.values()])

    def _replace(self, model: nn.Module, scale: float, wanted: Callable[[str], bool]) -> dict[str, LoraLinear]:
        head = model.get_output_embeddings()  # type: ignore[operator]
        layers = {}
        for name, module in list(model.named_modules()):
            if not isinstance(module, nn.Linear | Conv1D) or module is head or not wanted(name):
                continue
            transposed = isinstance(module, Conv1D)
            self.conv1d |= transposed
            weight = module.weight.detach().t().contiguous() if transposed else module.weight.detach()
            bias = None if module.bias is None else module.bias.detach()
            layers[name] = LoraLinear(weight, bias, scale)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layers[name])
        return layers

    def initialise(self, seed: int) -> None:
        """A uniform as PEFT's default (Kaiming, √5), B zero: at step 0 the model is its base."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers.values():
            bound = 1 / math.sqrt(layer.a.shape[1])
            layer.a.data.copy_(torch.rand(layer.a.shape, generator=generator).mul_(2 * bound).sub_(bound))
        self.publish()

    def load(self, folder: Path) -> None:
        """Go on from a plain PEFT folder whose targets this adapter has."""
        tensors = load_file(folder / "adapter_model.safetensors")
        for name, layer in self.layers.items():
            layer.a.data.copy_(tensors[f"{PREFIX}{name}.lora_A.weight"])
            layer.b.data.copy_(tensors[f"{PREFIX}{name}.lora_B.weight"])
        self.publish()

    def save(self, folder: Path) -> None:
        """Write adapter_model.safetensors and adapter_config.json as PEFT does, the base's name left out."""
        if not leads():
            return
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for name, layer in self.layers.items():
            tensors[f"{PREFIX}{name}.lora_A.weight"] = layer.a.detach().cpu().clone()
            tensors[f"{PREFIX}{name}.lora_B.weight"] = layer.b.detach().cpu().clone()
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "use_rslora": self.rslora,
            "fan_in_fan_out": self.conv1d,
            "inference_mode": True,
            "target_modules": sorted({name.rpartition(".")[2] for name in self.layers}),
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))


def factor_shapes(layer: LoraLinear, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    out, inner = layer.shape
    return (rank, inner), (out, rank)


def new_adapter(model: nn.Module, rank: int, seed: int, rslora: bool = False) -> Adapter:
    """Fresh factors on every linear but the output head; `rslora` (arXiv 2312.03732) scales by the root of the rank."""
    adapter = Adapter(model, rank, ALPHA, lambda name: True, rslora)
    adapter.initialise(seed)
    return adapter


def adapter_from(model: nn.Module, folder: Path) -> Adapter:
    """The adapter of a PEFT folder, trainable again: its rank, scale and targets."""
    config: Mapping[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    keys = load_file(folder / "adapter_model.safetensors")
    names = {key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in keys}
    rslora = bool(config.get("use_rslora"))
    adapter = Adapter(model, int(config["r"]), config["lora_alpha"], names.__contains__, rslora)
    adapter.load(folder)
    return adapter


@torch.no_grad()
def merge(model: nn.Module, folder: Path) -> None:
    """Add the adapter of a PEFT folder to the weights of its base."""
    config: Mapping[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    rank = int(config["r"])
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    tensors = load_file(folder / "adapter_model.safetensors")
    for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        module = model.get_submodule(name)
        change = tensors[f"{PREFIX}{name}.lora_B.weight"].float() @ tensors[key].float() * scale
        weight: Tensor = module.weight  # type: ignore[assignment]
        change = (change.t() if isinstance(module, Conv1D) else change).to(weight.device)
        weight.copy_(weight.float() + change)
