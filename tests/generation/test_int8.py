"""Weights of 8 bits: nearly the same chances of each token, with and without adapters, and a clear no elsewhere."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.settings import GenerationSettings
from tests.generation.tiny import ask, prompts, start_engine
from workers.generation.engine.load import load_engine

pytest.importorskip("numba")


def chances(family: Path, adapter: str | None, **numbers: str) -> Tensor:
    """Log-probabilities that the engine gives the tokens of some prompts."""
    engine = start_engine(family, **numbers)
    answers = [ask(engine, ids, adapter, prompt_logprobs=0, max_tokens=1) for ids in prompts(6)]
    found = [each.logprob for answer in answers for event in answer.wait().events for each in event.prompt_logprobs]
    engine.close()
    return torch.tensor(found)


@pytest.mark.parametrize("adapter", [None, "a3"])
def test_a_base_in_8_bits_gives_nearly_the_same_chances(family: Path, adapter: str | None) -> None:
    exact = chances(family, adapter)
    rounded = chances(family, adapter, dtype="fp32", quantization="int8")
    spread = (exact - exact.mean()).norm()
    assert 0 < (rounded - exact).norm() < 0.1 * spread


def test_adapters_change_a_base_in_8_bits(llama: Path) -> None:
    plain, changed = (chances(llama, adapter, quantization="int8") for adapter in (None, "a3"))
    assert (changed - plain).norm() > 0.2 * (plain - plain.mean()).norm()


def test_an_engine_without_the_kernels_refuses_8_bits(llama: Path) -> None:
    with pytest.raises(ValueError, match="int8"):
        start_engine(llama, quantization="int8", kernels=False)


def test_vllm_refuses_the_built_in_engines_8_bits(llama: Path) -> None:
    settings = GenerationSettings(engine="vllm", quantization="int8")
    with pytest.raises(ValueError, match="QUANTIZATION"):
        load_engine(settings, llama / "base", None, lambda: None)  # type: ignore[arg-type]
