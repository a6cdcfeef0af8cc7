"""A model that was made deeper, wider or richer in words computes what it computed before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from models_registry.prompt import Renderer
from tests.fine_tuning.recipe import chat, run
from tests.tiny_base import tiny_base
from workers.fine_tuning.recipes.changes import change_model
from workers.fine_tuning.recipes.refusal import Refused

IDS = torch.tensor([[5, 9, 17, 33, 120, 64, 8]])
CHAT = [chat(f"Say {n}", "a fine day") for n in range(4)]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both families, with the same tokenizer; GPT-2's biases are not zero."""
    folder = tiny_base(tmp_path_factory.mktemp(request.param))
    if request.param == "gpt2":
        torch.manual_seed(1)
        config = GPT2Config(vocab_size=384, n_layer=2, n_embd=64, n_head=4, n_positions=512, eos_token_id=2)
        model = GPT2LMHeadModel(config)
        for parameter in model.parameters():
            parameter.data += torch.randn_like(parameter) * 0.1
        model.save_pretrained(folder)
    return folder


def changed(folder: Path, work: Path, *changes: dict[str, Any]) -> tuple[Any, Path]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, change_model(model, changes, folder, work)


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


@pytest.mark.parametrize(
    ("change", "exact"),
    [
        ({"type": "repeat_layers", "layers": [0, 1, 1]}, True),
        ({"type": "widen_mlp", "width": 300}, False),
        ({"type": "extend_vocabulary", "tokens": ["fox day", *(f"<tool{n}>" for n in range(80))]}, True),
    ],
)
def test_a_grown_model_gives_the_originals_logits(
    folder: Path, tmp_path: Path, change: dict[str, Any], exact: bool
) -> None:
    words = Renderer.load(folder).vocabulary
    before = logits(AutoModelForCausalLM.from_pretrained(folder).eval())[..., :words]
    model, _ = changed(folder, tmp_path, change)
    after = logits(model)[..., :words]
    if exact:
        assert torch.equal(after, before)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert model.num_parameters() > AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()), logits(model))


def test_a_pruned_model_is_what_is_left(folder: Path, tmp_path: Path) -> None:
    model, _ = changed(
        folder, tmp_path, {"type": "repeat_layers", "layers": [0]}, {"type": "remove_layers", "layers": [1, 2]}
    )
    assert model.config.num_hidden_layers == 1
    other, _ = changed(folder, tmp_path, {"type": "remove_layers", "layers": [1]})
    assert torch.equal(logits(model), logits(other))


def test_a_new_token_is_one_token_that_means_what_its_pieces_did(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = changed(folder, tmp_path, {"type": "extend_vocabulary", "tokens": ["<tool>"]})
    (id,) = Renderer.load(tokenizer).encode("<tool>")
    pieces = Renderer.load(folder).encode("<tool>")
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(table[id], table[pieces].mean(0))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"type": "repeat_layers", "layers": [7]}, "layers 0 to 1"),
        ({"type": "remove_layers", "layers": [0, 1]}, "no layer would be left"),
        ({"type": "widen_mlp", "width": 8}, "wide already"),
        ({"type": "widen_mlp", "width": 4096}, "more than 4 times"),
        ({"type": "extend_vocabulary", "tokens": ["<|im_end|>"]}, "there already"),
    ],
)
def test_what_cannot_be_changed_says_why(folder: Path, tmp_path: Path, change: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=why):
        changed(folder, tmp_path, change)


def test_new_layers_learn(folder: Path, tmp_path: Path) -> None:
    changes = [{"type": "repeat_layers", "layers": [1]}, {"type": "extend_vocabulary", "tokens": ["<tool>"]}]
    whole = {"settings": {"adapter": "none"}, "model_changes": changes, "peak_rate": 1e-3}
    told = run(folder, tmp_path / "work", "supervised", CHAT * 3, held_out=CHAT, **whole)
    assert told.done["metrics"]["full_valid_loss"] < told.done["metrics"]["base_valid_loss"]
    assert told.done["facts"]["shape"]["layers"] == 3
    model = AutoModelForCausalLM.from_pretrained(told.done["folder"])
    writer = "transformer.h.2.mlp.c_proj" if "GPT2" in type(model).__name__ else "model.layers.2.mlp.down_proj"
    assert model.get_submodule(writer).weight.abs().max() > 0
    assert Renderer.load(Path(told.done["folder"])).tokenizer.token_to_id("<tool>") == Renderer.load(folder).vocabulary
