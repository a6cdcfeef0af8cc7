"""The prompt's own log-probabilities are those of transformers, however the prompt was cut into steps."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.generation.tiny import Answer, ask, prompts, start_engine
from workers.generation.engine import prompt_logprobs
from workers.generation.engine.engine import TorchEngine
from workers.generation.engine.request import TokenLogprob
from workers.generation.engine.stack import MOST_WANTED

LONG = prompts(20)[19]


def scores(answer: Answer, index: int = 0) -> list[TokenLogprob]:
    return [each for event in answer.events if event.index == index for each in event.prompt_logprobs]


def check(root: Path, ids: list[int], told: list[TokenLogprob], top: int = 2) -> None:
    model = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert [each.token for each in told] == ids[1:]
    for at, each in enumerate(told):
        assert abs(each.logprob - float(expected[at, ids[at + 1]])) < 1e-4
        assert [token for token, _ in each.top] == expected[at].topk(top).indices.tolist()


def test_a_prompt_is_scored_and_the_answer_is_the_same(family: Path) -> None:
    engine = start_engine(family)
    plain = ask(engine, LONG).wait().ids()
    answer = ask(engine, LONG, prompt_logprobs=2).wait()
    engine.close()
    check(family, LONG, scores(answer))
    assert answer.ids() == plain


def test_nothing_is_produced_when_only_scores_are_wanted(llama: Path, engine: TorchEngine) -> None:
    answer = ask(engine, LONG, prompt_logprobs=2, max_tokens=0, n=2).wait()
    assert (answer.ids(0), answer.ids(1)) == ([], [])
    assert answer.finish(0) == answer.finish(1) == "length"
    check(llama, LONG, scores(answer, 0))
    check(llama, LONG, scores(answer, 1))
    assert engine.stats().blocks_used == 0


@pytest.mark.parametrize("rows", [5, 128])
def test_cut_preempted_and_mixed_prompts_are_told_once(llama: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_logprobs, "ROWS", rows)
    jobs = prompts(16)
    roomy = start_engine(llama)
    plain = [ask(roomy, ids).wait().ids() for ids in jobs]
    roomy.close()
    cramped = start_engine(llama, kv_cache_tokens=256, max_batch_tokens=16, max_batch=16)
    answers = [ask(cramped, ids, prompt_logprobs=2 if at % 2 else None) for at, ids in enumerate(jobs)]
    assert [answer.wait().ids() for answer in answers] == plain
    assert cramped.stats().preemptions > 0
    cramped.close()
    for at, (ids, answer) in enumerate(zip(jobs, answers, strict=True)):
        if at % 2:
            check(llama, ids, scores(answer))
        else:
            assert scores(answer) == []


@pytest.mark.parametrize("adapter", [None, "a3"])
def test_a_row_has_the_same_score_on_a_tape_and_among_more_than_it_takes(llama: Path, adapter: str | None) -> None:
    engine = start_engine(llama, max_batch_tokens=512)
    asked = [LONG[:MOST_WANTED], LONG[: MOST_WANTED + 1]]
    on_tape, beside = [scores(ask(engine, ids, adapter, prompt_logprobs=2, max_tokens=1).wait()) for ids in asked]
    engine.close()
    assert on_tape == beside[:-1]
    if adapter is None:
        check(llama, asked[1], beside)


def test_one_token_has_no_score(engine: TorchEngine) -> None:
    assert scores(ask(engine, [7], prompt_logprobs=0, max_tokens=0).wait()) == []
