"""Norms and gates of well-known decoders, whose weights do not learn, as one kernel call each, forth and back.

transformers spells them as a dozen operations that each write a whole activation, some in fp32, and keep it for the way
back: on a processor that took as long as a third of a step's products.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from workers.generation.engine import cpu
from workers.generation.engine.fused import GATES, NORMS, FusedNorm, is_fused_mlp


class Norm(Function):
    """RMS norm (arXiv 1910.07467) over the last dimension; the gradient is of `hidden` alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, norm: FusedNorm) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.norm = norm
        return norm(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        from workers.generation.engine.cpu.pointwise import NORM_BACK

        (hidden,) = ctx.saved_tensors
        x, gradient = hidden.contiguous(), gradients[0].contiguous()
        result, width = torch.empty_like(x), x.shape[-1]
        NORM_BACK[cpu.KINDS[x.dtype]](
            x.data_ptr(),
            ctx.norm.weight.data_ptr(),
            gradient.data_ptr(),
            result.data_ptr(),
            x.numel() // width,
            width,
            ctx.norm.epsilon,
            ctx.norm.offset,
        )
        return result, None


class Gate(Function):
    """activation(gate) · up; `kind`: one of GATES."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kind: int) -> Tensor:
        from workers.generation.engine.cpu.pointwise import GATE

        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.kind = kind
        result, width = torch.empty_like(gate), gate.shape[-1]
        GATE[cpu.KINDS[gate.dtype]](
            gate.data_ptr(), up.data_ptr(), result.data_ptr(), gate.numel() // width, width, width, kind
        )
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        from workers.generation.engine.cpu.pointwise import GATE_BACK

        gate, up = ctx.saved_tensors
        gradient, width = gradients[0].contiguous(), gate.shape[-1]
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        GATE_BACK[cpu.KINDS[gate.dtype]](
            *(each.data_ptr() for each in (gate, up, gradient, of_gate, of_up)), gate.numel() // width, width, ctx.kind
        )
        return of_gate, of_up, None


class FrozenNorm(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = FusedNorm(norm)

    def forward(self, hidden: Tensor) -> Tensor:
        return Norm.apply(hidden, self.norm)


class GatedMlp(nn.Module):
    """down(activation(gate) · up) of the linears that were there."""

    def __init__(self, mlp: Any, activation: str) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.kind = GATES[activation]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(Gate.apply(self.gate_proj(hidden), self.up_proj(hidden), self.kind))


def fuse(model: Any) -> None:
    """In place, where the kernels serve the model's device and numbers."""
    weight = model.get_input_embeddings().weight
    if not cpu.serves(weight.device, weight.dtype, model.config):
        return
    config = model.config
    activation = str(getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", ""))
    for name, module in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        if type(module).__name__ in NORMS:
            setattr(model.get_submodule(parent), child, FrozenNorm(module))
        elif is_fused_mlp(module, activation):
            setattr(model.get_submodule(parent), child, GatedMlp(module, activation))
