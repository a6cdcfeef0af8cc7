"""Greedy output equals transformers + PEFT in fp32, token for token."""

from pathlib import Path

import pytest

from tests.generation.tiny import Held, ask, prompts, reference, start_engine
from workers.generation.engine import cpu


def test_alone_base_and_adapter_answer_as_transformers_does(family: Path) -> None:
    engine = start_engine(family)
    for number, ids in enumerate(prompts(20)):
        adapter = None if number % 5 == 4 else f"a{number % 5}"
        assert ask(engine, ids, adapter).wait().ids() == reference(family, adapter, ids, 24)
    engine.close()


def test_a_mixed_batch_of_16_with_4_adapters_changes_nothing(family: Path) -> None:
    engine = start_engine(family)
    jobs = [(ids, None if i % 5 == 4 else f"a{i % 5}") for i, ids in enumerate(prompts(16))]
    answers = [ask(engine, ids, adapter) for ids, adapter in jobs]
    got = [answer.wait().ids() for answer in answers]
    engine.close()
    assert got == [reference(family, adapter, ids, 24) for ids, adapter in jobs]
    assert len({tuple(ids) for ids in got}) == 16


def test_each_adapter_changes_the_answer(family: Path) -> None:
    engine = start_engine(family)
    ids = prompts(6)[5]
    answers = [ask(engine, ids, adapter).wait().ids() for adapter in (None, "a0", "a1", "a2", "a3")]
    engine.close()
    assert len({tuple(answer) for answer in answers}) == 5


def test_preempted_and_chunked_answers_are_the_same(family: Path) -> None:
    jobs = [(ids, None if i % 5 == 4 else f"a{i % 5}") for i, ids in enumerate(prompts(16))]
    roomy = start_engine(family)
    expected = [ask(roomy, ids, adapter).wait().ids() for ids, adapter in jobs]
    roomy.close()
    cramped = start_engine(family, kv_cache_tokens=256, max_batch_tokens=16, max_batch=16)
    answers = [ask(cramped, ids, adapter) for ids, adapter in jobs]
    got = [answer.wait().ids() for answer in answers]
    assert got == expected
    assert cramped.stats().preemptions > 0
    assert cramped.stats().blocks_used == 0
    cramped.close()


def test_a_step_of_more_rows_than_any_before_changes_nothing(family: Path) -> None:
    engine = start_engine(family, max_batch_tokens=512)
    jobs = [(ids, None if i % 5 == 4 else f"a{i % 5}") for i, ids in enumerate(prompts(16))]
    assert len(jobs[0][0]) < 64 < sum(len(ids) for ids, _ in jobs)
    ask(engine, *jobs[0]).wait()
    held = Held()
    ask(engine, jobs[4][0], on_event=held)
    with held:
        answers = [ask(engine, ids, adapter) for ids, adapter in jobs]
    got = [answer.wait().ids() for answer in answers]
    engine.close()
    assert got == [reference(family, adapter, ids, 24) for ids, adapter in jobs]


def test_where_onednn_multiplies_the_other_kernels_still_serve(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "multiplies", lambda dtype: False)
    engine = start_engine(family)
    jobs = [(ids, None if i % 5 == 4 else f"a{i % 5}") for i, ids in enumerate(prompts(8))]
    answers = [ask(engine, ids, adapter) for ids, adapter in jobs]
    got = [answer.wait().ids() for answer in answers]
    engine.close()
    assert got == [reference(family, adapter, ids, 24) for ids, adapter in jobs]
