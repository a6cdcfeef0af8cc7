"""Rotary positions come from a table that holds what the model computes."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.generation.tiny import Spelled, ask, new_model, prompts, reference
from workers.generation.engine.engine import EngineOptions, TorchEngine
from workers.generation.engine.rotation import Rotation

LENGTH = 64
KINDS = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "dynamic": {"factor": 2.0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_position_has_the_angles_that_its_model_gives_it(kind: str) -> None:
    parameters = {"rope_type": kind, "rope_theta": 10_000.0} | KINDS[kind]
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=LENGTH, rope_parameters=parameters
    )
    own, like = LlamaRotaryEmbedding(config), torch.empty(0, dtype=torch.bfloat16)
    positions = torch.tensor([[63, 0, 5, 5, 17]])
    for ours, theirs in zip(Rotation(own, like)(like, positions), own(like, positions), strict=True):
        assert ours.shape == (1, 5, 16)
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, theirs)


def test_angles_that_grow_with_the_sequence_are_asked_for_at_each_step() -> None:
    parameters = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=LENGTH, rope_parameters=parameters
    )
    like, far = torch.empty(0), torch.tensor([[5, 2 * LENGTH]])
    rotation = Rotation(LlamaRotaryEmbedding(config), like)
    near = rotation(like, far[:, :1])[0]
    assert not torch.equal(rotation(like, far)[0][:, :1], near)


def test_a_model_whose_angles_grow_answers_as_transformers_does(tmp_path: Path) -> None:
    config = new_model("llama").config
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    options = EngineOptions(dtype="fp32", kv_cache_tokens=1024)
    engine = TorchEngine(tmp_path / "base", detokenizer=Spelled, eos_ids=frozenset(), options=options)
    jobs = prompts(6)
    answers = [ask(engine, ids) for ids in jobs]
    got = [answer.wait().ids() for answer in answers]
    engine.close()
    assert got == [reference(tmp_path, None, ids, 24) for ids in jobs]
