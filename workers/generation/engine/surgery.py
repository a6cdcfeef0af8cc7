"""Turns a transformers model into the engine's: linears that know adapters, packed weights, fused modules."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workers.generation.engine import fused
from workers.generation.engine.adapters import AdapterLinear, Part, StepAdapters
from workers.generation.engine.cpu.huge_pages import HugePages
from workers.generation.engine.kernel_calls import NOW, Caller
from workers.generation.engine.linear import Form, Product
from workers.generation.engine.stack import FusedDecoder


class PlainLinear(nn.Module):
    """The output head: packed like the others, changed by no adapter; logits are fp32."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.product = product

    def forward(self, hidden: Tensor, on: Caller = NOW) -> Tensor:
        return self.product.wide(hidden, on)


@dataclass
class Surgeon:
    """Operates once, in place. `kernels`: the compiled ones serve this model's device and numbers; `form`: what makes
    its products."""

    model: PreTrainedModel
    step: StepAdapters
    kernels: bool
    form: Form
    linears: list[AdapterLinear] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._place = HugePages().place

    def operate(self) -> list[AdapterLinear]:
        """The adapter-aware linears in order."""
        if self.kernels:
            for name, module in list(self.model.named_modules()):
                self._fuse(name, module)
            for name, module in list(self.model.named_modules()):
                if fused.is_fused_layer(module):
                    self._replace(name, fused.FusedLayer(module))
        head = self.model.get_output_embeddings()
        for name, module in list(self.model.named_modules()):
            if isinstance(module, nn.Linear | Conv1D) and module is not head:
                self._replace(name, self._join(name, [""]))
        if isinstance(head, nn.Linear):
            bias = None if head.bias is None else head.bias.detach()
            self.model.set_output_embeddings(PlainLinear(Product(head.weight.detach(), bias, self.form, self._place)))
        return self.linears

    def decoder(self) -> FusedDecoder | None:
        """After the operation: the whole model, where our kernels do all of its layers' work."""
        body, head = self.model.get_decoder(), self.model.get_output_embeddings()
        layers = list(getattr(body, "layers", []))
        fused_layers = [layer for layer in layers if isinstance(layer, fused.FusedLayer)]
        whole = layers and len(fused_layers) == len(layers) and self.form is not Form.LIBRARY
        return FusedDecoder(body, head, fused_layers, self.step) if whole and isinstance(head, PlainLinear) else None

    def _fuse(self, name: str, module: nn.Module) -> None:
        activation = str(
            getattr(self.model.config, "hidden_act", None) or getattr(self.model.config, "hidden_activation", "")
        )
        if fused.is_fused_attention(module):
            qkv = self._join(name, ["q_proj", "k_proj", "v_proj"])
            self._replace(name, fused.FusedAttention(module, qkv, self._join(name, ["o_proj"])))
        elif fused.is_fused_mlp(module, activation):
            both = self._join(name, ["gate_proj", "up_proj"])
            self._replace(name, fused.FusedMlp(both, self._join(name, ["down_proj"]), activation))
        elif type(module).__name__ in fused.NORMS and not name.endswith(("q_norm", "k_norm")):
            self._replace(name, fused.FusedNorm(module))

    def _join(self, name: str, children: list[str]) -> AdapterLinear:
        """Several linears with one input as one; `[""]` is the module `name` itself."""
        names = [f"{name}.{child}" if child else name for child in children]
        pairs = [weight_and_bias(self.model.get_submodule(each)) for each in names]
        parts, begin = [], 0
        for each, (weight, _) in zip(names, pairs, strict=True):
            parts.append(Part(each, begin, weight.shape[0]))
            begin += weight.shape[0]
        bias = None
        if any(own is not None for _, own in pairs):
            bias = torch.cat([weight.new_zeros(weight.shape[0]) if own is None else own for weight, own in pairs])
        weight = pairs[0][0] if len(pairs) == 1 else torch.cat([weight for weight, _ in pairs])
        self.linears.append(
            AdapterLinear(len(self.linears), parts, Product(weight, bias, self.form, self._place), self.step)
        )
        return self.linears[-1]

    def _replace(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, module)


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """[out, in] whatever way round the module keeps it."""
    assert isinstance(module, nn.Linear | Conv1D)  # noqa: S101 (chosen so by the callers)
    weight = module.weight.detach()
    bias = None if module.bias is None else module.bias.detach()
    return (weight.t().contiguous() if isinstance(module, Conv1D) else weight), bias
