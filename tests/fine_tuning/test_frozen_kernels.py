"""What training computes with the engine's kernels is what torch's own operations give."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from workers.fine_tuning.recipes import lora, packing, pointwise
from workers.fine_tuning.recipes.frozen import Factors, KernelProduct, LibraryProduct, Publisher
from workers.fine_tuning.recipes.model import target_logprobs
from workers.fine_tuning.recipes.rows import Row
from workers.generation.engine import cpu

pytest.importorskip("numba")


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.parametrize(("tokens", "outer", "inner", "rank"), [(40, 96, 64, 8), (7, 130, 50, 3), (1, 2, 66, 1)])
def test_a_frozen_product_and_its_factors_go_forth_and_back_as_in_fp32(
    tokens: int, outer: int, inner: int, rank: int
) -> None:
    torch.manual_seed(tokens)
    weight, bias = torch.randn(outer, inner).bfloat16(), torch.randn(outer).bfloat16()
    factors = Factors(torch.randn(rank, inner), torch.randn(outer, rank), 1.5)
    x, slope = torch.randn(tokens, inner).bfloat16(), torch.randn(tokens, outer).bfloat16()
    product = KernelProduct(weight, bias, factors)
    exact = LibraryProduct(weight.float(), bias.float(), factors)
    factors.a.mul_(0.1)
    Publisher([product, exact])()
    for found, wanted in (
        (product.forth(x), exact.forth(x.float())),
        (product.back(slope, wanted=True), exact.back(slope.float(), wanted=True)),
    ):
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours is not None
            assert theirs is not None
            assert ours.shape == theirs.shape
            assert relative(ours, theirs) < 0.01
    assert product.back(slope, wanted=False)[0] is None


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu"},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "hidden_activation": "gelu_pytorch_tanh"},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 90},
}


def tiny(family: str) -> nn.Module:
    config: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config |= {"num_key_value_heads": 2, "vocab_size": 90}
    own = FAMILIES[family] if family == "gpt2" else config | FAMILIES[family]
    torch.manual_seed(1)
    made: nn.Module = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **own), attn_implementation=packing.NAME
    )
    for name, parameter in made.named_parameters():
        if "norm" in name or "ln_" in name:
            nn.init.normal_(parameter, 0.5, 0.2)
    return made.eval().requires_grad_(False)


def learned(model: nn.Module, adapter: lora.Adapter) -> tuple[Tensor, Tensor]:
    """Loss and gradients of three packed sequences, from factors that change the model."""
    adapter.weights.copy_(torch.randn(len(adapter.weights), generator=torch.Generator().manual_seed(2)) / 10)
    adapter.publish()
    rows = [Row(list(range(5, 5 + length)), [True] * length) for length in (9, 30, 4)]
    loss = -target_logprobs(model, packing.pack(rows, torch.device("cpu")))[0].mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), adapter.gradients.clone()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_kernels_learns_what_it_learns_without(family: str) -> None:
    plain, fused = tiny(family), tiny(family)
    wanted = learned(plain, lora.new_adapter(plain, 4, 3))
    adapter = lora.new_adapter(fused, 4, 3)
    pointwise.fuse(fused)
    kinds = {type(module).__name__ for module in fused.modules()}
    assert ({"FrozenNorm", "GatedMlp"} <= kinds) == (family != "gpt2")
    found = learned(fused, adapter)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    assert relative(found[1], wanted[1]) < 1e-4


def test_in_bf16_the_kernels_are_no_further_from_fp32_than_torch_is() -> None:
    if not cpu.multiplies(torch.bfloat16):
        pytest.skip("here bf16 is left to the library")
    exact = tiny("llama")
    wanted = learned(exact, lora.new_adapter(exact, 4, 3))[1]
    library, ours = tiny("llama").bfloat16(), tiny("llama").bfloat16()
    adapter = lora.new_adapter(ours, 4, 3)
    pointwise.fuse(ours)
    assert all(isinstance(layer.product, KernelProduct) for layer in adapter.layers.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora, "frozen_product", LibraryProduct)
        other = lora.new_adapter(library, 4, 3)
    assert relative(learned(ours, adapter)[1], wanted) < 1.3 * relative(learned(library, other)[1], wanted)
