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
KINDS: dict[str, dict[str, object]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def rotary(parameters: dict[str, object]) -> LlamaRotaryEmbedding:
    common = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": LENGTH}
    return LlamaRotaryEmbedding(LlamaConfig(**common, rope_parameters={"rope_theta": 10_000.0, **parameters}))


@pytest.mark.parametrize("kind", KINDS)
def test_each_position_has_the_angles_that_its_model_gives_it(kind: str) -> None:
    own, like = rotary({"rope_type": kind, **KINDS[kind]}), torch.empty(0, dtype=torch.bfloat16)
    rotation, positions = Rotation(own, like, LENGTH), torch.tensor([[63, 0, 5, 5, 17]])
    assert rotation.table is not None
    for ours, theirs in zip(rotation.table, own(like, positions), strict=True):
        assert ours.shape == (LENGTH, rotation.width)
        torch.testing.assert_close(ours[positions], theirs)


def test_angles_that_grow_with_the_sequence_are_asked_for_at_each_step() -> None:
    like, far = torch.empty(0), torch.tensor([[5, 2 * LENGTH]])
    rotation = Rotation(rotary({"rope_type": "dynamic", "factor": 2.0}), like, LENGTH)
    assert rotation.table is None
    near = rotation(like, far[:, :1])[0]
    assert near.shape == (1, 1, rotation.width)
    assert not torch.equal(rotation(like, far)[0][:, :1], near)


def test_a_model_whose_angles_change_amid_its_answer_answers_as_transformers_does(tmp_path: Path) -> None:
    config = new_model("llama").config
    width, short = config.head_dim // 2, 16
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * width,
        "long_factor": [4.0] * width,
        "original_max_position_embeddings": short,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    options = EngineOptions(dtype="fp32", kv_cache_tokens=1024)
    engine = TorchEngine(tmp_path / "base", detokenizer=Spelled, eos_ids=frozenset(), options=options)
    jobs = [ids for ids in prompts(4) if len(ids) <= short < len(ids) + 24]
    got = [ask(engine, ids).wait().ids() for ids in jobs]
    engine.close()
    assert len(jobs) > 1
    assert got == [reference(tmp_path, None, ids, 24) for ids in jobs]
