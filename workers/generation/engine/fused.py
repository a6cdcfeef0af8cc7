"""Modules of well-known decoders as few kernel calls: on a processor, transformers' small operations cost more than
the arithmetic when few sequences decode. Only classes named here are replaced; all others keep their own code.
"""

from typing import Any

from torch import Tensor, nn

from workers.generation.engine import cpu
from workers.generation.engine.adapters import AdapterLinear
from workers.generation.engine.attention import PackedStep
from workers.generation.engine.kernel_calls import NOW, Caller
from workers.generation.engine.kv_pages import Shape

# Class of the norm → what is added to its weights (Gemma keeps them around 0).
NORMS = {"LlamaRMSNorm": 0, "MistralRMSNorm": 0, "Qwen2RMSNorm": 0, "Qwen3RMSNorm": 0, "Gemma3RMSNorm": 1}
ATTENTIONS = {"LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention", "Gemma3Attention"}
MLPS = {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "Gemma3MLP"}
# Layers that are no more than x + attention(norm(x)), then x + mlp(norm(x)).
LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
GATES = {"silu": 0, "gelu_pytorch_tanh": 1}


def is_fused_layer(module: nn.Module) -> bool:
    """Only once its parts are."""
    parts = getattr(module, "self_attn", None), getattr(module, "mlp", None)
    return type(module).__name__ in LAYERS and isinstance(parts[0], FusedAttention) and isinstance(parts[1], FusedMlp)


def is_fused_attention(module: nn.Module) -> bool:
    return type(module).__name__ in ATTENTIONS and getattr(module, "attn_logit_softcapping", None) is None


def is_fused_mlp(module: nn.Module, activation: str) -> bool:
    return type(module).__name__ in MLPS and activation in GATES


class FusedNorm(nn.Module):
    """RMS norm (arXiv 1910.07467) over the last dimension."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.offset = NORMS[type(norm).__name__]
        self.weight, self.epsilon = norm_weight(norm), epsilon_bits(norm)

    def forward(self, hidden: Tensor, on: Caller = NOW) -> Tensor:
        from workers.generation.engine.cpu.pointwise import NORM

        width = hidden.shape[-1]
        rows = hidden.contiguous().view(1, -1, width)
        out = on.empty(rows, width)
        on.call(
            NORM[cpu.KINDS[hidden.dtype]],
            rows.data_ptr(),
            self.weight.data_ptr(),
            out.data_ptr(),
            on.varying("rows", rows.shape[1]),
            width,
            self.epsilon,
            self.offset,
        )
        return out.view(hidden.shape)


class FusedMlp(nn.Module):
    """down(activation(gate) · up), gate and up as one product."""

    def __init__(self, gate_up: AdapterLinear, down: AdapterLinear, activation: str) -> None:
        super().__init__()
        self.gate_up, self.down, self.kind = gate_up, down, GATES[activation]

    def forward(self, hidden: Tensor, onto: Tensor | None = None, on: Caller = NOW) -> Tensor:
        from workers.generation.engine.cpu.pointwise import GATE

        both = self.gate_up.forward(hidden, on=on)
        rows, width = both.shape[1], both.shape[2] // 2
        out = on.empty(both, width)
        on.call(
            GATE[cpu.KINDS[both.dtype]],
            both.data_ptr(),
            both.data_ptr() + width * both.itemsize,
            out.data_ptr(),
            on.varying("rows", rows),
            width,
            2 * width,
            self.kind,
        )
        return self.down.forward(out, onto, on)


class FusedAttention(nn.Module):
    """QKV as one product, one kernel that norms, rotates and stores, then paged attention."""

    def __init__(self, own: Any, qkv: AdapterLinear, output: AdapterLinear) -> None:
        super().__init__()
        self.qkv, self.output, self.layer_idx = qkv, output, own.layer_idx
        heads = qkv.parts[0].width // own.head_dim
        kv_heads = qkv.parts[1].width // own.head_dim
        # Mistral's modules leave the window to their config.
        window = getattr(own.config if type(own).__name__ == "MistralAttention" else own, "sliding_window", None)
        self.shape = Shape(heads, kv_heads, own.head_dim, own.scaling, window or 0)
        self.norms, self.norm_form = None, None
        if hasattr(own, "q_norm"):
            self.norms = norm_weight(own.q_norm), norm_weight(own.k_norm)
            self.norm_form = epsilon_bits(own.q_norm), NORMS[type(own.q_norm).__name__]

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *,
        step: PackedStep,
        onto: Tensor | None = None,
        on: Caller = NOW,
        **_: object,
    ) -> tuple[Tensor, None]:
        rows = hidden_states.shape[1]
        qkv = self.qkv.forward(hidden_states, on=on).view(rows, -1, self.shape.head_dim)
        cos, sin = position_embeddings
        from workers.generation.engine.cpu.pages import KernelPages

        pages = step.layers[self.layer_idx]
        assert isinstance(pages, KernelPages)  # noqa: S101 (the model runner fuses only where kernels serve)
        positions = cos.contiguous(), sin.contiguous()
        pages.rotate(qkv, step.places, self.shape, positions, self.norms, self.norm_form, on)
        attended = pages.attend(qkv, step.plan, self.shape, on)
        return self.output.forward(attended.view(1, rows, -1), onto, on), None


class FusedLayer(nn.Module):
    """A decoder layer without the wrappers around its parts; residuals are added by the products."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.before_attention, self.attention = own.input_layernorm, own.self_attn
        self.before_mlp, self.mlp = own.post_attention_layernorm, own.mlp

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        step: PackedStep,
        on: Caller = NOW,
        **_: object,
    ) -> Tensor:
        normed = self.before_attention.forward(hidden_states, on)
        hidden, _none = self.attention.forward(normed, position_embeddings, step=step, onto=hidden_states, on=on)
        result: Tensor = self.mlp.forward(self.before_mlp.forward(hidden, on), hidden, on)
        return result


def norm_weight(norm: nn.Module) -> Tensor:
    weight = norm.weight
    assert isinstance(weight, Tensor)  # noqa: S101 (nn.Module attributes are untyped)
    return weight.detach()


def epsilon_bits(norm: Any) -> int:
    from workers.generation.engine.cpu.scalar import bits

    return bits(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)
