"""Held-out rows decide: what is kept, when it is enough, and what changed between the base and the model."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.fine_tuning.recipe import chat, run
from tests.tiny_base import tiny_base

TRAINING = [chat(f"What is number {number}?", f"Number {number} is done.") for number in range(8)]
HELD_OUT = [chat(f"Sing of {what}!", f"Oh {what}, how I long for thee.") for what in ("rivers", "mountains", "rain")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


def test_training_that_only_learns_by_heart_stops_early_and_keeps_its_best_state(base: Path, tmp_path: Path) -> None:
    terms: dict[str, Any] = {"n_epochs": 30, "batch_size": 4, "learning_rate_multiplier": 20.0, "held_out": HELD_OUT}
    stopping: dict[str, Any] = terms | {"early_stopping_patience": 2, "keep": "best"}
    told = run(base, tmp_path / "a", "supervised", TRAINING, **stopping)
    notes = [note["message"] for note in told.all("note")]
    losses = [float(note.rpartition(" ")[2]) for note in notes if note.startswith("Held-out loss after epoch")]
    best = losses.index(min(losses))
    assert best + 3 == len(losses) < 30
    assert any(note.startswith("Stopped early") for note in notes)
    metrics = told.done["metrics"]
    assert metrics["step"] == 2 * (best + 1)
    assert metrics["full_valid_loss"] == pytest.approx(min(losses), abs=1e-3)
    assert told.done["trained_tokens"] == len(losses) * told.all("begin")[0]["tokens"]
    shorter = run(base, tmp_path / "b", "supervised", TRAINING, **terms | {"held_out": None, "n_epochs": best + 1})
    assert shorter.done["trained_tokens"] < told.done["trained_tokens"]

    again = run(base, tmp_path / "c", "supervised", TRAINING, **stopping, stop_after=3)
    assert again.all("stopped")
    again = run(base, tmp_path / "c", "supervised", TRAINING, **stopping)
    weights = [load_file(Path(each.done["folder"]) / "adapter_model.safetensors") for each in (told, again)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert again.done["metrics"] == metrics


def test_a_run_stopped_amid_steps_and_evaluations_again_and_again_ends_as_if_it_never_was(
    base: Path, tmp_path: Path
) -> None:
    terms: dict[str, Any] = {"n_epochs": 8, "batch_size": 2, "learning_rate_multiplier": 20.0, "held_out": HELD_OUT}
    terms |= {"early_stopping_patience": 2, "keep": "best", "pack_tokens": 64}
    whole = run(base, tmp_path / "whole", "supervised", TRAINING, **terms)
    asked = sum(name == "step" for name, _ in whole.reports)
    steps: list[dict[str, Any]] = []
    epochs: set[int] = set()
    for attempt in range(10 * asked):
        told = run(base, tmp_path / "parts", "supervised", TRAINING, **terms, stop_at=7 + attempt % 5)
        steps += told.all("step")
        epochs |= {each["step"] for each in told.all("epoch")}
        if told.all("done"):
            break
        assert told.reports[-1][0] == "stopped"
    timing = {"tokens": None, "seconds": None, "eta_seconds": None}
    figures = [{**step, **timing} for step in steps]
    assert figures == [{**step, **timing} for step in whole.all("step")]
    assert epochs == {each["step"] for each in whole.all("epoch")}
    assert told.done["metrics"] == whole.done["metrics"]
    weights = [load_file(Path(each.done["folder"]) / "adapter_model.safetensors") for each in (whole, told)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert attempt > 5


def test_before_and_after_are_measured_and_shown(base: Path, tmp_path: Path) -> None:
    told = run(base, tmp_path, "supervised", TRAINING, n_epochs=3, held_out=TRAINING[:3])
    metrics = told.done["metrics"]
    for name in ("loss", "perplexity", "mean_token_accuracy"):
        assert {f"base_valid_{name}", f"full_valid_{name}"} <= set(metrics)
    assert metrics["full_valid_loss"] < metrics["base_valid_loss"]
    samples = told.done["samples"]
    assert len(samples) == 2
    assert "What is number 0?" in samples[0]["prompt"]
    assert samples[0]["before"] != samples[0]["after"]


def test_a_checkpoint_shows_what_its_epoch_was_judged_by(base: Path, tmp_path: Path) -> None:
    told = run(base, tmp_path, "supervised", TRAINING, n_epochs=3, keep="best", held_out=TRAINING[:3])
    judged = [step["full_valid_loss"] for step in told.all("step") if "full_valid_loss" in step]
    assert len(judged) == 3
    assert [each["metrics"]["full_valid_loss"] for each in told.all("epoch")] == judged[:2]
    assert all("full_valid_mean_token_accuracy" in each["metrics"] for each in told.all("epoch"))


def test_what_a_database_of_texts_cannot_hold_is_left_out_of_what_is_shown(base: Path, tmp_path: Path) -> None:
    told = run(base, tmp_path, "supervised", TRAINING, held_out=[chat("What is\0 this?", "A \0 of three.")])
    assert "What is this?" in told.done["samples"][0]["prompt"]
    assert "\\u0000" not in json.dumps(told.done["samples"])
