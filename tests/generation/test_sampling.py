"""What the sampling parameters promise."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.generation.tiny import VOCABULARY, ask, prompts
from workers.generation.engine.engine import TorchEngine
from workers.generation.engine.sampler import keep_top, uniform

IDS = prompts(8)[7]


def test_the_same_seed_gives_the_same_text_alone_and_in_a_crowd(engine: TorchEngine) -> None:
    alone = ask(engine, IDS, "a1", temperature=1, seed=7).wait().ids()
    crowd = [ask(engine, ids, f"a{i % 4}", temperature=1, seed=i) for i, ids in enumerate(prompts(12))]
    again = ask(engine, IDS, "a1", temperature=1, seed=7)
    assert again.wait().ids() == alone
    assert ask(engine, IDS, "a1", temperature=1, seed=8).wait().ids() != alone
    for answer in crowd:
        answer.wait()


def test_choices_of_one_request_differ_and_their_text_matches_their_tokens(engine: TorchEngine) -> None:
    answer = ask(engine, IDS, temperature=1, seed=1, n=3).wait()
    choices = [answer.ids(index) for index in range(3)]
    assert len({tuple(choice) for choice in choices}) == 3
    assert [answer.text(index) for index in range(3)] == ["".join(f"{t} " for t in c) for c in choices]


def test_top_k_of_one_is_greedy(engine: TorchEngine) -> None:
    greedy = ask(engine, IDS).wait().ids()
    assert ask(engine, IDS, temperature=1.5, top_k=1).wait().ids() == greedy
    assert ask(engine, IDS, temperature=1.5, top_p=1e-9).wait().ids() == greedy
    assert ask(engine, IDS, temperature=1.5, min_p=1.0).wait().ids() == greedy


def test_draws_follow_the_distribution(llama: Path, engine: TorchEngine) -> None:
    answer = ask(engine, IDS, temperature=2.0, top_k=4, seed=3, n=400, max_tokens=1).wait()
    model = AutoModelForCausalLM.from_pretrained(llama / "base").eval()
    with torch.inference_mode():
        logits = model(torch.tensor([IDS])).logits[0, -1]
    values, ids = (logits / 2.0).topk(4)
    for token, share in zip(ids.tolist(), values.softmax(-1).tolist(), strict=True):
        drawn = sum(answer.ids(index) == [token] for index in range(400)) / 400
        assert abs(drawn - share) < 4 * math.sqrt(share * (1 - share) / 400) + 0.005


def test_logprobs_are_those_of_transformers(llama: Path, engine: TorchEngine) -> None:
    answer = ask(engine, IDS, logprobs=5, max_tokens=6).wait()
    model = AutoModelForCausalLM.from_pretrained(llama / "base").eval()
    with torch.inference_mode():
        logits = model(torch.tensor([IDS + answer.ids()])).logits[0].log_softmax(-1)
    for at, event in enumerate(event for event in answer.events if event.ids):
        expected = logits[len(IDS) - 1 + at]
        (reported,) = event.logprobs
        assert abs(reported.logprob - float(expected[reported.token])) < 1e-4
        assert [token for token, _ in reported.top] == expected.topk(5).indices.tolist()
        assert reported.top[0] == (reported.token, reported.logprob)


def test_logit_bias_can_forbid_and_force(engine: TorchEngine) -> None:
    first = ask(engine, IDS, max_tokens=1).wait().ids()[0]
    assert ask(engine, IDS, max_tokens=1, logit_bias={first: -100}).wait().ids()[0] != first
    assert ask(engine, IDS, max_tokens=5, logit_bias={17: 1000}).wait().ids() == [17] * 5


def test_penalties_stop_repetition(engine: TorchEngine) -> None:
    forced = {token: 200.0 for token in range(4)}
    plain = ask(engine, IDS, max_tokens=4, logit_bias=forced).wait().ids()
    spread = ask(engine, IDS, max_tokens=4, logit_bias=forced, presence_penalty=100).wait().ids()
    assert len(set(plain)) < 4
    assert sorted(spread) == [0, 1, 2, 3]
    counted = ask(engine, IDS, max_tokens=8, logit_bias=forced, frequency_penalty=100).wait().ids()
    assert sorted(counted) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_repetition_penalty_matches_transformers(llama: Path, engine: TorchEngine) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama / "base").eval()
    prompt = torch.tensor([IDS])
    expected = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=12,
        do_sample=False,
        repetition_penalty=1.7,
        eos_token_id=None,
        pad_token_id=0,
    )[0, len(IDS) :].tolist()
    assert ask(engine, IDS, repetition_penalty=1.7, max_tokens=12).wait().ids() == expected


def test_a_nucleus_wider_than_the_candidates_is_exact() -> None:
    flat = torch.full((5000,), 1 / 5000)
    assert int((keep_top(flat, 0.5, 0) > 0).sum()) in (2500, 2501)
    assert int((keep_top(flat, 1.0, 2000) > 0).sum()) == 2000


def test_noise_depends_on_seed_choice_and_position_only() -> None:
    numbers = [uniform(seed, index, position) for seed in (1, 2) for index in (0, 1) for position in range(50)]
    assert len(set(numbers)) == 200
    assert all(0 <= number < 1 for number in numbers)
    assert 0.4 < sum(numbers) / 200 < 0.6
    assert uniform(1, 0, 5) == numbers[5]
    assert VOCABULARY > 17


@pytest.mark.parametrize("token", [-1, 10**9])
def test_a_token_that_the_model_does_not_have_is_refused(engine: TorchEngine, token: int) -> None:
    """A kernel would look it up by address."""
    with pytest.raises(ValueError, match="vocabulary"):
        ask(engine, [1, token])
    assert ask(engine, [1, 2], max_tokens=2).wait().finish() == "length"
