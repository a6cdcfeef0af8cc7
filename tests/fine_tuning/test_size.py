"""A model's size is known before it is made, and a small training is no measure of a large one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy.orm import Session
from transformers import AutoModelForCausalLM

from app.errors import AppError
from app.fine_tuning.estimate import Work, expect
from app.fine_tuning.methods import Method, Pretraining, check_method
from app.fine_tuning.rules import Hyperparameters, looked_tokens, resolve
from app.fine_tuning.size import check_size, parameters_of
from app.fine_tuning.tables import FineTuningJob
from app.variants.tables import BaseModel
from tests.factories import new_base
from tests.fine_tuning.test_queue import alone, queue
from tests.tiny_base import tiny_base
from workers.fine_tuning.recipes.changes import change_model
from workers.fine_tuning.recipes.new_model import gpt2, llama
from workers.model_import.convert import save

__all__ = ["alone"]
SHAPE = {"layers": 2, "hidden_size": 64, "vocabulary": 384, "linears": {"layers.0.mlp.up_proj": [96, 64]}}
HUGE = {"layers": 30, "width": 1024, "heads": 8}
TINY = {"layers": 1, "width": 32, "heads": 2, "vocabulary": 300}


@pytest.mark.parametrize(
    "changes",
    [
        [{"type": "repeat_layers", "layers": [0, 1, 1]}],
        [{"type": "widen_mlp", "width": 300}, {"type": "repeat_layers", "layers": [1]}],
        [{"type": "extend_vocabulary", "tokens": [f"<tool{n}>" for n in range(80)]}],
        [{"type": "remove_layers", "layers": [1]}],
    ],
)
def test_a_changed_model_has_as_many_parameters_as_was_said(tmp_path: Path, changes: list[dict[str, Any]]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path / "base"))
    facts = save(model, tmp_path / "base", "unknown")
    said = parameters_of(check_method("supervised", {}, changes), facts.parameters, facts.shape)
    change_model(model, changes, tmp_path / "base", tmp_path)
    # New tokens first fill what is free in the embedding: 69 of these 80.
    assert said == pytest.approx(model.num_parameters(), rel=0.06)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_new_model_has_as_many_parameters_as_was_said(architecture: str) -> None:
    settings = Pretraining.model_validate({"architecture": architecture, "tokenizer": "base", "width": 384, "heads": 6})
    with torch.device("meta"):
        config = {"gpt2": gpt2, "llama": llama}[architecture](settings, 5000, 0)
        made = AutoModelForCausalLM.from_config(config).num_parameters()
    said = parameters_of(Method("pretraining", settings), 1, {"vocabulary": 5000})
    assert said == pytest.approx(made, rel=0.02)


@pytest.mark.parametrize(
    ("method", "shape"),
    [
        (check_method("pretraining", {"width": 4096, "tokenizer": "base"}, None), SHAPE | {"vocabulary": 256_000}),
        (check_method("supervised", {}, [{"type": "repeat_layers", "layers": [0] * 64}] * 16), SHAPE),
        (check_method("supervised", {}, [{"type": "widen_mlp", "width": 60_000}]), SHAPE),
    ],
)
def test_what_would_grow_past_the_limit_is_refused(method: Method, shape: dict[str, Any]) -> None:
    linears = {f"layers.{n}.mlp.up_proj": [4096, 1024] for n in range(24)}
    with pytest.raises(AppError, match="at most 1000000000 parameters"):
        check_size(method, 200_000_000, shape | {"layers": 24, "hidden_size": 1024, "linears": linears})


def test_a_large_base_may_be_made_smaller() -> None:
    smaller = check_method("supervised", {}, [{"type": "remove_layers", "layers": [1]}])
    check_size(smaller, 7_000_000_000, SHAPE)


def finished(tx: Session, base: BaseModel, method: Method, looked: dict[str, float] | None = None) -> FineTuningJob:
    timing = {"tokens": 100_000, "steps": 50, "loop_seconds": 2.0, "seconds": 9.0, "peak_memory_bytes": 400_000_000}
    timing |= looked or {}
    return queue(tx, base_id=base.id, status="succeeded", method=method.as_json(), result={"timing": timing})[0]


def test_tiny_trainings_are_no_measure_of_a_huge_one(alone: Session) -> None:
    base, tiny, huge = new_base(alone), *(check_method("pretraining", each, None) for each in (TINY, HUGE))
    finished(alone, base, tiny)
    work = Work(100_000, 50)
    assert expect(alone, base, tiny, work).jobs == 1
    assert expect(alone, base, tiny, work).memory_bytes == 400_000_000
    expected = expect(alone, base, huge, work)
    assert expected.jobs == 0
    assert expected.memory_bytes > 18 * parameters_of(huge, 1, {})
    assert expected.seconds > 6 * parameters_of(huge, 1, {}) * work.tokens / 300e9


def test_a_somewhat_larger_model_takes_longer_than_the_measured_one(alone: Session) -> None:
    base, tiny = new_base(alone), check_method("pretraining", TINY, None)
    larger = check_method("pretraining", TINY | {"layers": 3}, None)
    finished(alone, base, tiny)
    measured, expected = (expect(alone, base, method, Work(100_000, 50)) for method in (tiny, larger))
    assert (expected.jobs, measured.seconds) == (1, 9.0)
    assert expected.seconds > measured.seconds
    assert expected.memory_bytes > measured.memory_bytes


def test_what_is_only_looked_at_takes_the_time_of_looking_not_of_learning(alone: Session) -> None:
    base, tiny = new_base(alone), check_method("pretraining", TINY, None)
    finished(alone, base, tiny, {"looked_tokens": 50_000, "looked_seconds": 0.5})
    learning, looking = (expect(alone, base, tiny, Work(100_000, 50, looked)).seconds for looked in (0, 100_000))
    assert (learning, looking) == (8.5, 9.5)


def test_held_out_rows_are_looked_at_before_after_between_and_where_they_judge() -> None:
    plain, judged = (resolve(Hyperparameters(n_epochs=3, keep=keep), 80) for keep in ("last", "best"))
    assert looked_tokens(plain, 5, 1000, 10) == 2000
    assert looked_tokens(judged, 5, 1000, 10) == 5000
    assert looked_tokens(plain, 31, 1000, 10) == 5000
    assert looked_tokens(plain, 1000, 1000, 64) == 3000
