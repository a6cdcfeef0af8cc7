"""Every method learns what its rows ask for, and a stopped run goes on to the very bytes of an undisturbed one."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from app.files.rows import parse_row
from models_registry.prompt import Message, Renderer
from tests.fine_tuning.recipe import chat, preference, run
from tests.tiny_base import tiny_base
from workers.fine_tuning.recipes import objective, packing
from workers.fine_tuning.recipes.dpo import REFERENCE, known_references, reference_logprobs
from workers.fine_tuning.recipes.lora import adapter_from
from workers.fine_tuning.recipes.model import load_base, target_logprobs
from workers.fine_tuning.recipes.objective import answer_logprobs
from workers.fine_tuning.recipes.refusal import Refused
from workers.fine_tuning.recipes.rows import Row, preference_row, read_rows, read_texts
from workers.fine_tuning.spec import JobSpec

CPU = torch.device("cpu")
CHAT = [chat(f"What is number {n}?", f"Number {n} is " + "one more " * (n % 3) + "done.") for n in range(8)]
PAIRS = [preference(f"What is number {n}?", "It is good.", "It is rather bad, " * (n % 2 + 1)) for n in range(8)]
TEXTS = [{"text": f"the quick brown fox number {n} jumps over the lazy dog. " * 4} for n in range(12)]
MIXED = [chat(f"Say {n}", "a fine day") for n in range(4)] + [chat(f"Say {n}", "bad", unwanted=True) for n in range(4)]
WHOLE = {"settings": {"adapter": "none"}, "peak_rate": 1e-3}
GPT2 = {"architecture": "gpt2", "layers": 2, "width": 32, "heads": 2, "context": 64, "vocabulary": 300}
RUNS: list[tuple[str, Sequence[Any], dict[str, Any]]] = [
    ("supervised", CHAT, {"settings": {"use_rslora": True}}),
    ("supervised", CHAT, {**WHOLE, "dtype": "bf16"}),
    ("dpo", PAIRS, {}),
    ("unlikelihood", MIXED, {}),
    ("continued_pretraining", TEXTS, {"settings": {"context": 32}}),
    ("pretraining", TEXTS, {"settings": GPT2}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("methods-base"))


def digests(folder: str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}


@pytest.mark.parametrize(("method", "rows", "more"), RUNS)
def test_a_stopped_run_ends_in_the_same_bytes(
    folder: Path, tmp_path: Path, method: str, rows: Sequence[Any], more: dict[str, Any]
) -> None:
    whole = run(folder, tmp_path / "whole", method, rows, held_out=rows[:2], **more)
    stopped = run(folder, tmp_path / "parts", method, rows, held_out=rows[:2], stop_after=2, **more)
    assert stopped.reports[-1][0] == "stopped"
    resumed = run(folder, tmp_path / "parts", method, rows, held_out=rows[:2], **more)
    assert resumed.all("begin")[0]["step"] == 2
    assert stopped.losses + resumed.losses == whole.losses
    assert digests(resumed.done["folder"]) == digests(whole.done["folder"])
    assert resumed.done["metrics"] == whole.done["metrics"]


@pytest.mark.parametrize(
    ("method", "rows", "dtype"),
    [("supervised", CHAT, "fp32"), ("supervised", CHAT, "bf16"), ("unlikelihood", MIXED, "fp32")],
)
def test_the_adapter_that_a_run_leaves_is_the_one_it_measured(
    folder: Path, tmp_path: Path, method: str, rows: Sequence[Any], dtype: str
) -> None:
    more = {"held_out": rows[:4], "dtype": dtype, "peak_rate": 5e-3}
    left = run(folder, tmp_path / "first", method, rows, **more).done
    assert left["metrics"]["full_valid_loss"] < left["metrics"]["base_valid_loss"]
    onwards = run(folder, tmp_path / "onwards", method, rows, parent=left["folder"], **more).done
    assert onwards["metrics"]["base_valid_loss"] == pytest.approx(left["metrics"]["full_valid_loss"], rel=1e-4)


def test_preferred_answers_gain_on_held_out_pairs(folder: Path, tmp_path: Path) -> None:
    told = run(folder, tmp_path / "work", "dpo", PAIRS * 4, held_out=PAIRS, peak_rate=5e-3, n_epochs=2)
    metrics = told.done["metrics"]
    assert metrics["base_valid_loss"] == pytest.approx(0.69315, abs=1e-4)
    assert metrics["full_valid_loss"] < 0.3
    assert metrics["full_valid_reward_accuracy"] == 1.0 > metrics["base_valid_reward_accuracy"]
    assert metrics["full_valid_reward_margin"] > 1
    assert (tmp_path / "work" / REFERENCE).exists()


def test_a_reference_goes_on_from_the_last_whole_line_to_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    model = load_base(JobSpec(base=str(folder), training="", work="", seed=0, **spec_numbers()), CPU)
    renderer = Renderer.load(folder)
    found = [preference_row(parse_row(json.dumps(pair).encode()), renderer, 512) for pair in PAIRS]
    rows = [row for row in found if row is not None]
    whole = reference_logprobs(tmp_path, model, rows, CPU, 100)
    file = tmp_path / REFERENCE
    content = file.read_text()
    file.write_text(content[: len(content) // 2])
    assert 0 < len(known_references(tmp_path)) < len(rows)
    assert reference_logprobs(tmp_path, model, rows, CPU, 100) == whole
    assert len(known_references(tmp_path)) == len(rows)


def test_a_fork_shares_its_prompt_and_counts_as_two_rows_would(folder: Path) -> None:
    model = load_base(JobSpec(base=str(folder), training="", work="", seed=0, **spec_numbers()), CPU)
    renderer = Renderer.load(folder)
    rows = [preference_row(parse_row(json.dumps(pair).encode()), renderer, 512) for pair in PAIRS[:3]]
    forks = [row for row in rows if row is not None]
    prompt = [Message("user", "What is number 0?")]
    sides = [renderer.training([*prompt, Message("assistant", text)]) for text in ("It is good.", "It is rather bad, ")]
    assert len(forks[0].ids) < sum(len(side.ids) for side in sides)
    for length in (1, 3):
        together = answer_logprobs(model, forks[:length], CPU)[0]
        alone = [target_logprobs(model, packing.pack([Row(side.ids, side.mask)], CPU))[0].sum() for side in sides]
        torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=1e-5)


def spec_numbers() -> dict[str, Any]:
    counts = {"n_epochs": 1, "batch_size": 1, "rank": 4, "context_length": 512}
    return {"learning_rate_multiplier": 1.0, "dtype": "fp32", **counts}


def test_unwanted_answers_become_unlikely_and_wanted_ones_do_not(folder: Path, tmp_path: Path) -> None:
    told = run(folder, tmp_path / "work", "unlikelihood", MIXED * 6, held_out=MIXED, peak_rate=5e-3)
    first = run(folder, tmp_path / "first", "unlikelihood", MIXED, held_out=MIXED, peak_rate=1e-9)
    before, after = first.done["metrics"], told.done["metrics"]
    assert after["full_valid_unwanted_mean_logprob"] < before["full_valid_unwanted_mean_logprob"]
    assert after["full_valid_loss"] < before["full_valid_loss"]
    assert after["base_valid_loss"] == pytest.approx(before["base_valid_loss"])


def test_the_slope_of_unlikelihood_is_that_of_its_formula(folder: Path) -> None:
    model = load_base(JobSpec(base=str(folder), training="", work="", seed=0, **spec_numbers()), CPU)
    model.get_input_embeddings().requires_grad_(True)
    row = Row([5, 9, 17, 3], [False, True, True, True], unwanted=True)
    loss, _ = objective.Likelihood(2.0).measure(model, [row], CPU)
    found = torch.autograd.grad(loss, model.get_input_embeddings().weight)[0]
    chances = model(torch.tensor([row.ids]), pack=packing.pack([row], CPU)).logits[0, :-1].softmax(-1)
    wanted = -2.0 * torch.log1p(-chances[torch.arange(3), torch.tensor(row.ids[1:])]).sum()
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    expected = torch.autograd.grad(wanted, model.get_input_embeddings().weight)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_an_unwanted_answer_that_is_all_but_certain_is_still_pushed_down(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logprobs = torch.tensor([-1e-7, -1e-5, -2.0], requires_grad=True)
    monkeypatch.setattr(objective, "target_logprobs", lambda model, pack: (logprobs, 0))
    loss, _ = objective.Likelihood().measure(None, [Row([5, 9, 17, 3], [False, True, True, True], unwanted=True)], CPU)
    (slope,) = torch.autograd.grad(loss, logprobs)
    assert torch.isfinite(slope).all()
    assert slope[0] >= slope[1] > slope[2] > 0


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_new_model_learns_its_texts_and_loads_anywhere(tmp_path: Path, architecture: str) -> None:
    settings = {**GPT2, "architecture": architecture}
    told = run(
        tmp_path,
        tmp_path / "work",
        "pretraining",
        TEXTS,
        held_out=TEXTS[:2],
        settings=settings,
        peak_rate=5e-3,
        n_epochs=20,
    )
    metrics, result = told.done["metrics"], told.done["folder"]
    assert metrics["full_valid_loss"] < metrics["base_valid_loss"] / 2
    assert metrics["full_valid_perplexity"] == pytest.approx(2.71828 ** metrics["full_valid_loss"], rel=1e-3)
    model = AutoModelForCausalLM.from_pretrained(result)
    renderer = Renderer.load(Path(result))
    ids = torch.tensor([renderer.encode("the quick brown fox number")])
    assert renderer.decode([int(model(ids).logits[0, -1].argmax())]).startswith(" ")
    assert told.done["facts"]["shape"]["layers"] == 2
    assert renderer.chat([Message("user", "hello")])


def test_texts_fill_whole_blocks_and_each_has_its_end(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "the quick brown fox"}\n{"text": "jumps <|im_end|>"}\n')
    renderer = Renderer.load(folder)
    rows = read_texts(file, renderer, 8)
    assert [len(row.ids) for row in rows[:-1]] == [8] * (len(rows) - 1)
    stream = [id for row in rows for id in row.ids]
    end = renderer.tokenizer.token_to_id("<|endoftext|>")
    assert stream == [*renderer.encode("the quick brown fox"), end, *renderer.encode("jumps <|im_end|>"), end]


def test_all_turns_or_the_assistants_alone_and_never_a_turn_of_weight_0(folder: Path, tmp_path: Path) -> None:
    row = chat("Who?", "the fox")
    row["messages"] += [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "a dog", "weight": 0}]
    file = tmp_path / "chat.jsonl"
    import json

    file.write_text(json.dumps(row) + "\n")
    renderer = Renderer.load(folder)

    def targets(all_turns: bool) -> str:
        (found,) = read_rows(file, renderer, 512, all_turns=all_turns)
        return renderer.decode([id for id, learned in zip(found.ids, found.mask, strict=True) if learned])

    assert targets(False) == "the fox"
    assert targets(True) == "Who?the foxWhy?"


def test_whole_weights_go_on_from_an_adapter_as_if_it_were_part_of_them(folder: Path, tmp_path: Path) -> None:
    adapter = run(folder, tmp_path / "adapter", "supervised", CHAT, peak_rate=1e-2).done["folder"]
    told = run(
        folder, tmp_path / "whole", "supervised", CHAT, parent=adapter, settings={"adapter": "none"}, peak_rate=0
    )
    merged = AutoModelForCausalLM.from_pretrained(told.done["folder"])
    model = load_base(JobSpec(base=str(folder), training="", work="", seed=0, **spec_numbers()), CPU)
    adapter_from(model, Path(adapter))
    ids = list(range(5, 25))
    pack = packing.pack([Row(ids, [True] * 20)], CPU)
    wanted = merged(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)[torch.arange(19), torch.tensor(ids[1:])]
    torch.testing.assert_close(target_logprobs(model, pack)[0], wanted, atol=1e-4, rtol=1e-4)


def test_a_loss_that_is_not_a_number_ends_the_job_with_its_step_and_a_hint(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"at step [23].*learning_rate_multiplier") as refusal:
        run(folder, tmp_path / "work", "supervised", CHAT, peak_rate=1e20, settings={"adapter": "none"})
    assert refusal.value.code == "training_diverged"


def test_out_of_memory_halves_the_micro_batch_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = 40
    measure = objective.Likelihood.measure

    def tight(self: Any, model: Any, rows: Sequence[Row], device: torch.device) -> Any:
        if sum(len(row.ids) for row in rows) > largest:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return measure(self, model, rows, device)

    short = [chat(f"{n}?", "yes") for n in range(4)]
    monkeypatch.setattr(objective.Likelihood, "measure", tight)
    size = len(read_rows(Path(written(tmp_path, short)), Renderer.load(folder), 512)[0].ids)
    largest = size
    told = run(folder, tmp_path / "once", "supervised", short, pack_tokens=2 * size)
    assert "going on with" in told.all("note")[0]["message"]
    assert len(told.losses) == 2
    largest = size - 1
    with pytest.raises(Refused, match="out of memory at step 1") as refusal:
        run(folder, tmp_path / "twice", "supervised", short, pack_tokens=2 * size)
    assert refusal.value.code == "out_of_memory"


def written(folder: Path, rows: Sequence[Any]) -> str:
    from tests.fine_tuning.recipe import write

    return write(folder / "rows.jsonl", rows)


def test_an_adapters_file_says_how_it_is_scaled(folder: Path, tmp_path: Path) -> None:
    import json

    told = run(folder, tmp_path / "work", "supervised", CHAT, settings={"use_rslora": True})
    config = json.loads((Path(told.done["folder"]) / "adapter_config.json").read_text())
    assert config["use_rslora"] is True
    assert load_file(Path(told.done["folder"]) / "adapter_model.safetensors")
