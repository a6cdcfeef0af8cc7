"""What the store relies on, whichever engine serves: the same suite over every implementation."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.inference.wire_events import SamplingParams
from tests.generation import implementations
from tests.generation.implementations import ADAPTERS, END, IMPLEMENTATIONS
from tests.generation.tiny import CONTEXT, Answer, Held, prompts, reference, save_family
from tests.generation.tiny import ask as ask_until_end
from workers.generation.engine.protocol import AdapterNotLoaded, Engine, EngineClosed, RequestTooLong
from workers.generation.engine.request import EngineRequest, StepEvent

IDS = prompts(4)[3]


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def steps() -> list[int]:
    """One entry for each step that was told to its end."""
    return []


@pytest.fixture(scope="module")
def engine(name: str, llama: Path, steps: list[int]) -> Iterator[Engine]:
    engine = implementations.start(name, llama, after_step=lambda: steps.append(1))
    yield engine
    engine.close()


def ask(engine: Engine, ids: list[int], adapter: str | None = None, **params: object) -> Answer:
    """The tiny models end at random: go on, unless the test is about the end."""
    return ask_until_end(engine, ids, adapter, **({"ignore_eos": True} | params))  # type: ignore[arg-type]


def test_greedy_answers_of_a_mixed_batch_are_those_of_transformers_and_peft(engine: Engine, llama: Path) -> None:
    jobs = [(ids, (None, *ADAPTERS)[i % 5]) for i, ids in enumerate(prompts(15))]
    answers = [ask(engine, ids, adapter) for ids, adapter in jobs]
    assert [answer.wait().ids() for answer in answers] == [reference(llama, adapter, ids, 24) for ids, adapter in jobs]


def test_text_and_finish_go_with_the_tokens(engine: Engine) -> None:
    answer = ask(engine, IDS).wait()
    assert answer.text() == "".join(f"{token} " for token in answer.ids())
    assert (len(answer.ids()), answer.finish()) == (24, "length")
    assert answer.handle.started


def test_the_end_of_sequence_ends_a_reply_unless_ignored(engine: Engine) -> None:
    answer = ask(engine, IDS, ignore_eos=False, logit_bias={END: 100}).wait()
    assert (answer.ids(), answer.text(), answer.finish()) == ([END], "", "stop")
    answer = ask(engine, IDS, logit_bias={END: 100}, max_tokens=3).wait()
    assert (answer.ids(), answer.finish()) == ([END] * 3, "length")


def test_a_stop_string_across_tokens_is_cut_and_what_follows_is_not_counted(engine: Engine) -> None:
    plain = ask(engine, IDS).wait()
    ids, at = plain.ids(), 5
    stop = f"{ids[at]} {ids[at + 1]}"
    answer = ask(engine, IDS, stop=[stop]).wait()
    assert answer.text() == plain.text()[: plain.text().index(stop)]
    assert answer.finish() == "stop"
    assert answer.ids() == ids[: len(answer.ids())]
    assert len(answer.ids()) <= at + 3


def test_one_choice_stops_while_its_siblings_go_on(engine: Engine) -> None:
    free = ask(engine, IDS, n=3, temperature=1, seed=1).wait()
    first = free.ids(0)[2]
    answer = ask(engine, IDS, n=3, temperature=1, seed=1, stop=[f"{first} "]).wait()
    assert answer.finish(0) == "stop"
    assert [len(answer.ids(index)) > 0 for index in range(3)] == [True] * 3
    for index in range(3):
        told = "".join(f"{token} " for token in answer.ids(index))
        assert told.startswith(answer.text(index))
    assert len({tuple(free.ids(index)) for index in range(3)}) == 3


def test_a_seed_decides_the_text(engine: Engine) -> None:
    first, again, other = (ask(engine, IDS, "a1", temperature=1, seed=seed).wait().ids() for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_without_a_seed_two_answers_differ(engine: Engine) -> None:
    assert ask(engine, IDS, temperature=1).wait().ids() != ask(engine, IDS, temperature=1).wait().ids()


def test_top_k_of_one_is_greedy(engine: Engine) -> None:
    greedy = ask(engine, IDS).wait().ids()
    assert ask(engine, IDS, temperature=1.5, top_k=1).wait().ids() == greedy
    assert ask(engine, IDS, temperature=1.5, top_p=1e-9).wait().ids() == greedy
    assert ask(engine, IDS, temperature=1.5, min_p=1.0).wait().ids() == greedy


def test_logprobs_are_the_models_own(engine: Engine, llama: Path) -> None:
    answer = ask(engine, IDS, logprobs=4, max_tokens=6, temperature=0.7, seed=5).wait()
    model = AutoModelForCausalLM.from_pretrained(llama / "base").eval()
    with torch.inference_mode():
        expected = model(torch.tensor([IDS + answer.ids()])).logits[0].log_softmax(-1)[len(IDS) - 1 :]
    reported = [logprob for event in answer.events for logprob in event.logprobs]
    assert [logprob.token for logprob in reported] == answer.ids()
    for own, each in zip(expected, reported, strict=False):
        assert abs(each.logprob - float(own[each.token])) < 1e-4
        assert [token for token, _ in each.top] == own.topk(4).indices.tolist()
        assert all(abs(value - float(own[token])) < 1e-4 for token, value in each.top)


def test_logprobs_without_alternatives_and_none_at_all(engine: Engine) -> None:
    assert all(each.top == () for event in ask(engine, IDS, logprobs=0).wait().events for each in event.logprobs)
    assert all(event.logprobs == () for event in ask(engine, IDS).wait().events)


def test_penalties_spread_the_tokens(engine: Engine) -> None:
    forced = {token: 100.0 for token in range(4)}
    plain = ask(engine, IDS, max_tokens=4, logit_bias=forced).wait().ids()
    assert set(plain) <= set(range(4))
    penalties = {"frequency_penalty": 2, "presence_penalty": 2, "repetition_penalty": 1.5}
    spread = ask(engine, IDS, max_tokens=4, logit_bias=forced, **penalties).wait().ids()  # type: ignore[arg-type]
    assert len(set(spread)) > len(set(plain))


def test_the_context_bounds_the_reply(engine: Engine) -> None:
    answer = ask(engine, [1] * (CONTEXT - 5), max_tokens=100).wait()
    assert (len(answer.ids()), answer.finish()) == (5, "length")
    for ids in ([1] * CONTEXT, []):
        with pytest.raises(RequestTooLong):
            ask(engine, ids)


def test_a_cancel_ends_every_choice_and_frees_the_cache(engine: Engine) -> None:
    held = Held()
    answer = ask(engine, IDS, "a1", max_tokens=200, n=2, on_event=held)
    with held:
        engine.cancel(answer.handle)
    answer.wait()
    assert answer.finish(0) == answer.finish(1) == "cancelled"
    assert len(answer.ids()) < 200
    assert (engine.stats().running, engine.stats().waiting, engine.stats().blocks_used) == (0, 0, 0)
    assert ask(engine, IDS).wait().finish() == "length"


def test_a_cancel_that_overtakes_the_first_step_counts(engine: Engine) -> None:
    answer = ask(engine, IDS, max_tokens=200)
    engine.cancel(answer.handle)
    assert answer.wait().finish() == "cancelled"
    engine.cancel(answer.handle)


def test_an_adapter_must_be_loaded_and_can_come_and_go(engine: Engine, llama: Path) -> None:
    own = ask(engine, IDS, "a0").wait().ids()
    engine.unload_adapter("a0")
    with pytest.raises(AdapterNotLoaded):
        ask(engine, IDS, "a0")
    engine.load_adapter("a0", llama / "a0")
    engine.load_adapter("a0", llama / "a0")
    assert ask(engine, IDS, "a0").wait().ids() == own == reference(llama, "a0", IDS, 24)
    assert engine.stats().adapters == len(ADAPTERS)
    assert engine.stats().adapter_bytes > 0


def test_an_adapter_in_use_outlives_its_unloading(engine: Engine, llama: Path) -> None:
    held = Held()
    answer = ask(engine, IDS, "a2", max_tokens=100, on_event=held)
    with held:
        engine.unload_adapter("a2")
    assert answer.wait().ids() == reference(llama, "a2", IDS, 100)
    assert ask(engine, IDS, "a2").wait().ids() == answer.ids()[:24]


def test_adapters_load_while_a_batch_runs_and_change_nothing_in_it(engine: Engine, llama: Path) -> None:
    held = Held()
    answer = ask(engine, IDS, "a3", max_tokens=100, on_event=held)
    loading = threading.Thread(target=engine.load_adapter, args=("guest", llama / "a0"))
    with held:  # begun, not awaited: an engine may tell its listeners and load adapters in the same thread
        loading.start()
    loading.join()
    guest = ask(engine, IDS, "guest").wait().ids()
    engine.unload_adapter("guest")
    assert guest == reference(llama, "a0", IDS, 24)
    assert answer.wait().ids() == reference(llama, "a3", IDS, 100)


def test_an_adapter_of_another_base_is_refused(
    engine: Engine, llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = save_family("gpt2", tmp_path_factory.mktemp("other"))
    with pytest.raises(ValueError, match="adapter"):
        engine.load_adapter("stranger", other / "a0")
    with pytest.raises(AdapterNotLoaded):
        ask(engine, IDS, "stranger")
    assert ask(engine, IDS, "a1").wait().ids() == reference(llama, "a1", IDS, 24)


def test_a_step_is_told_to_its_end_before_its_requests_are_done(engine: Engine, steps: list[int]) -> None:
    before = len(steps)
    heard: list[int] = []
    answer = ask(engine, IDS, max_tokens=3, on_event=lambda _: heard.append(len(steps)))
    answer.wait()
    assert len(steps) >= before + 3
    assert heard == [before, before + 1, before + 2]


def test_sixteen_streams_share_steps(engine: Engine) -> None:
    before = engine.stats()
    answers = [ask(engine, ids, max_tokens=20) for ids in prompts(16)]
    for answer in answers:
        answer.wait()
    after = engine.stats()
    assert after.produced_tokens - before.produced_tokens == 16 * 20
    assert after.prompt_tokens - before.prompt_tokens == sum(len(ids) for ids in prompts(16))
    assert after.steps - before.steps < 16 * 20 / 2
    assert after.busy_seconds > before.busy_seconds
    assert after.blocks_total > 0


def test_a_closed_engine_ends_what_is_open_and_takes_nothing_new(name: str, llama: Path) -> None:
    engine = implementations.start(name, llama)
    begun = threading.Event()

    def dawdle(_: StepEvent) -> None:
        begun.set()
        threading.Event().wait(0.01)

    answer = ask(engine, IDS, "a1", max_tokens=200, on_event=dawdle)
    assert begun.wait(60)
    engine.close()
    assert answer.handle.wait(1)
    assert isinstance(answer.handle.error, EngineClosed)
    with pytest.raises(EngineClosed):
        engine.submit(EngineRequest((1,), SamplingParams(max_tokens=1)), lambda _: None)
    engine.close()
