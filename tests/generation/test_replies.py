"""How replies end: stops across tokens, lengths, cancels, failures; and what may never leak."""

import threading
from pathlib import Path

import pytest
import torch

from app.inference.wire_events import SamplingParams
from tests.generation.tiny import CONTEXT, Spelled, ask, prompts, start_engine
from workers.generation.engine.engine import EngineOptions, TorchEngine
from workers.generation.engine.protocol import AdapterNotLoaded, EngineClosed, RequestTooLong
from workers.generation.engine.reply_text import ReplyText
from workers.generation.engine.request import EngineRequest, StepEvent

IDS = prompts(4)[3]


class Letters:
    """Token 97 reads `a`."""

    def push(self, token: int) -> str:
        return chr(token)

    def flush(self) -> str:
        return ""


def spell(text: str, stops: list[str]) -> tuple[list[str], bool]:
    reply = ReplyText(Letters(), stops)
    pieces = []
    for letter in text:
        pieces.append(reply.push(ord(letter)))
        if reply.stopped:
            return pieces, True
    return [*pieces, reply.flush()], False


def dawdle(_: StepEvent) -> None:
    threading.Event().wait(0.01)


def test_a_stop_string_is_cut_even_across_tokens() -> None:
    assert spell("one STOP two", ["STOP"]) == (["o", "n", "e", " ", "", "", "", ""], True)


def test_a_near_miss_of_a_stop_string_is_given_back() -> None:
    pieces, stopped = spell("STSTO!", ["STOP"])
    assert ("".join(pieces), stopped) == ("STSTO!", False)
    assert pieces[:3] == ["", "", "ST"]


def test_the_earliest_of_several_stops_wins() -> None:
    pieces, stopped = spell("abcdef", ["def", "cd"])
    assert ("".join(pieces), stopped) == ("ab", True)


def test_what_is_held_at_the_end_leaves_with_the_flush() -> None:
    assert "".join(spell("abc ST", ["STOP"])[0]) == "abc ST"


def test_the_engine_stops_at_a_stop_string_and_counts_its_tokens(engine: TorchEngine) -> None:
    plain = ask(engine, IDS).wait()
    ids = plain.ids()
    stop = f"{ids[5]} {ids[6]}"
    stopped = ask(engine, IDS, stop=[stop]).wait()
    cut = plain.text().index(stop)
    assert stopped.text() == plain.text()[:cut]
    assert stopped.finish() == "stop"
    assert stopped.ids() == ids[: len(stopped.ids())]
    assert len(stopped.ids()) <= 8


def test_end_of_sequence_ends_unless_ignored(llama: Path, engine: TorchEngine) -> None:
    ids = ask(engine, IDS).wait().ids()
    ending = TorchEngine(
        llama / "base",
        detokenizer=Spelled,
        eos_ids=frozenset({ids[3]}),
        options=EngineOptions(dtype="fp32", kv_cache_tokens=2048),
    )
    until = ids.index(ids[3]) + 1
    answer = ask(ending, IDS).wait()
    assert (answer.ids(), answer.finish()) == (ids[:until], "stop")
    assert answer.text() == "".join(f"{token} " for token in ids[: until - 1])
    assert ask(ending, IDS, ignore_eos=True).wait().ids() == ids
    ending.close()


def test_the_context_bounds_the_reply(engine: TorchEngine) -> None:
    long = [1] * (CONTEXT - 5)
    answer = ask(engine, long, max_tokens=100).wait()
    assert (len(answer.ids()), answer.finish()) == (5, "length")
    with pytest.raises(RequestTooLong):
        ask(engine, [1] * CONTEXT)


def test_a_cancel_takes_effect_between_steps_and_frees_everything(engine: TorchEngine) -> None:
    seen = threading.Event()

    def slow(event: StepEvent) -> None:
        seen.set()
        dawdle(event)

    answer = ask(engine, IDS, "a1", on_event=slow, max_tokens=200, n=2)
    assert seen.wait(10)
    engine.cancel(answer.handle)
    answer.wait()
    assert answer.finish(0) == answer.finish(1) == "cancelled"
    assert 0 < len(answer.ids()) < 150
    assert engine.stats().blocks_used == 0
    assert engine.stats().running == 0


def test_an_unknown_adapter_is_refused_and_a_used_one_is_not_evicted(llama: Path) -> None:
    engine = start_engine(llama, adapter_memory_bytes=1)
    assert len(engine.bank) == 1
    with pytest.raises(AdapterNotLoaded):
        ask(engine, IDS, "a0")
    answer = ask(engine, IDS, "a3", max_tokens=100)
    engine.load_adapter("a0", llama / "a0")
    answer.wait()
    assert ask(engine, IDS, "a0").wait().finish() == "length"
    engine.close()


def test_poison_in_one_adapter_never_reaches_another_request(llama: Path, engine: TorchEngine) -> None:
    clean = ask(engine, IDS, "a1", max_tokens=60).wait().ids()
    engine.load_adapter("poison", llama / "a2")
    for down, up in engine.bank.get("poison").factors.values():
        down.fill_(float("nan"))
        up.fill_(float("inf"))
    for _ in range(3):
        sick = [ask(engine, ids, "poison", max_tokens=30) for ids in prompts(8)]
        well = ask(engine, IDS, "a1", max_tokens=60)
        for answer in sick:
            answer.wait()
        assert well.wait().ids() == clean
    assert ask(engine, IDS, "a1", max_tokens=60).wait().ids() == clean


def test_a_failed_step_fails_its_requests_and_the_engine_goes_on(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = engine.model_runner.forward

    def fail(batch: object) -> torch.Tensor:
        monkeypatch.setattr(engine.model_runner, "forward", forward)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.model_runner, "forward", fail)
    answer = ask(engine, IDS, "a0")
    assert answer.handle.wait(10)
    assert isinstance(answer.handle.error, RuntimeError)
    assert ask(engine, IDS, "a0").wait().finish() == "length"
    assert engine.stats().blocks_used == 0


def test_a_closed_engine_ends_what_is_open_and_takes_nothing_new(llama: Path) -> None:
    engine = start_engine(llama)
    answer = ask(engine, IDS, max_tokens=200, on_event=dawdle)
    engine.close()
    assert answer.handle.wait(1)
    assert isinstance(answer.handle.error, EngineClosed)
    with pytest.raises(EngineClosed):
        engine.submit(EngineRequest((1,), SamplingParams(max_tokens=1)), lambda _: None)


def test_a_listener_that_breaks_ends_its_own_request_only(engine: TorchEngine) -> None:
    def breaks(_: StepEvent) -> None:
        raise LookupError("nobody is there")

    neighbour = ask(engine, IDS, "a1", max_tokens=12)
    broken = engine.submit(EngineRequest(tuple(IDS), SamplingParams(max_tokens=12, temperature=0), "a2"), breaks)
    assert broken.wait(30)
    assert isinstance(broken.error, LookupError)
    assert len(neighbour.wait().ids()) == 12
    assert engine.bank.get("a2").users == 0


def test_a_step_that_fails_ends_every_open_request_and_the_next_one_works(llama: Path) -> None:
    engine = start_engine(llama)
    forward = engine.model_runner.forward

    def fails(batch: object) -> None:
        raise RuntimeError("out of memory")

    engine.model_runner.forward = fails  # type: ignore[assignment, method-assign]
    first = ask(engine, IDS, "a1")
    engine.cancel(first.handle)
    second = ask(engine, IDS, "a2")
    assert first.handle.wait(30)
    assert second.handle.wait(30)
    assert isinstance(second.handle.error, RuntimeError)
    assert [engine.bank.get(name).users for name in ("a1", "a2")] == [0, 0]
    engine.model_runner.forward = forward  # type: ignore[method-assign]
    assert len(ask(engine, IDS).wait().ids()) == 24
    engine.close()
