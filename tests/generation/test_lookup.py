"""Tokens tried ahead of their turn change nothing but the time."""

from pathlib import Path

import pytest
import torch

from tests.generation.tiny import Answer, ask, prompts, save_family, start_engine
from workers.generation.engine import cpu
from workers.generation.engine.engine import TorchEngine
from workers.generation.engine.lookup import Lookup
from workers.generation.engine.model_runner import choose_dtype

needs_kernels = pytest.mark.skipif(not cpu.AVAILABLE, reason="torch's own operations serve without numba")
REPEATED = [ids * 6 for ids in prompts(6)[1:]]
ASKED: list[dict[str, object]] = [
    {"max_tokens": 60},
    {"max_tokens": 60, "temperature": 0.7, "top_p": 0.95, "seed": 3, "logprobs": 2},
    {"max_tokens": 7},
    {"max_tokens": 60, "stop": ["1 2", "7"]},
    {"max_tokens": 40, "logit_bias": {5: 4.0}},
    {"max_tokens": 40, "temperature": 1.0, "seed": 4, "n": 2},
]


def told(answer: Answer) -> list[object]:
    """All that was said of each choice, however it was cut into events."""
    answer.wait()
    return [
        (
            answer.ids(index),
            answer.text(index),
            answer.finish(index),
            [each for event in answer.events if event.index == index for each in event.logprobs],
        )
        for index in range(answer.handle.request.params.n)
    ]


def ask_all(engine: TorchEngine, together: bool) -> list[object]:
    jobs = [(ids, f"a{i}" if i % 2 else None, asked) for i, ids in enumerate(REPEATED[:4]) for asked in ASKED]
    if together:
        return [told(answer) for answer in [ask(engine, ids, adapter, None, **asked) for ids, adapter, asked in jobs]]
    return [told(ask(engine, ids, adapter, None, **asked)) for ids, adapter, asked in jobs]


@needs_kernels
@pytest.mark.parametrize("dtype", ["fp32", "auto"])
def test_answers_are_the_same_to_the_last_bit_and_take_fewer_steps(dtype: str, tmp_path: Path) -> None:
    if dtype == "auto" and not cpu.multiplies(choose_dtype(dtype, torch.device("cpu"))):
        pytest.skip("oneDNN multiplies here: a row depends on its company")
    root = save_family("qwen3", tmp_path)  # it falls into loops soon, as random weights go
    plain, guessing = start_engine(root, dtype=dtype, lookup=False), start_engine(root, dtype=dtype)
    expected = ask_all(plain, together=False)
    assert ask_all(guessing, together=False) == expected
    assert 0 < guessing.stats().guessed_right <= guessing.stats().guessed
    assert guessing.stats().steps < plain.stats().steps
    assert plain.stats().guessed == 0
    assert ask_all(guessing, together=True) == expected
    assert guessing.stats().blocks_used == 0
    plain.close()
    guessing.close()


def test_nothing_is_guessed_where_a_row_depends_on_its_company(llama: Path) -> None:
    engine = start_engine(llama, kernels=False)
    ask(engine, REPEATED[0], max_tokens=60).wait()
    assert engine.stats().guessed == 0
    engine.close()


def test_what_followed_the_latest_tokens_before_is_guessed() -> None:
    lookup = Lookup()
    lookup.learn(4, 4)
    assert lookup.guess([1, 2], 9) == ()
    assert lookup.guess([1, 2, 3, 4, 5, 6, 7, 8], 9) == ()
    assert lookup.guess([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3], 9) == (4, 5, 6, 7, 8)
    assert lookup.guess([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3], 2) == (4, 5)
    assert lookup.guess([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 9, 1, 2, 3], 9)[:1] == (9,)


def test_a_short_period_goes_on() -> None:
    lookup = Lookup()
    lookup.learn(4, 4)
    assert lookup.guess([7, 8, 7, 8, 7, 8], 9) == (7, 8, 7, 8, 7)


def test_guesses_are_fewer_after_a_wrong_one_and_no_fewer_for_want_of_room() -> None:
    lookup, tokens = Lookup(), [1, 2, 3, 4, 5, 6, 1, 2]
    lookup.learn(tried=4, right=0)
    assert lookup.guess(tokens, 9) == (3,)
    lookup.learn(tried=1, right=1)
    assert lookup.guess(tokens, 9) == (3, 4)
    lookup.learn(tried=2, right=2)
    lookup.learn(tried=1, right=1)
    assert lookup.guess(tokens, 9) == (3, 4, 5)


@needs_kernels
def test_what_was_guessed_right_is_found_in_the_cache_and_is_what_was_computed(tmp_path: Path) -> None:
    root = save_family("qwen3", tmp_path)
    plain, guessing = start_engine(root, lookup=False), start_engine(root)
    reply = ask(guessing, REPEATED[0], max_tokens=80).wait().ids()
    assert guessing.stats().guessed_right > 0
    ask(plain, REPEATED[0], max_tokens=80).wait()
    further: list[object] = []
    for engine in (plain, guessing):
        answer = ask(engine, REPEATED[0] + reply, max_tokens=30, logprobs=3)
        further.append((told(answer), answer.handle.cached_tokens))
        engine.close()
    assert further[0] == further[1]
    assert answer.handle.cached_tokens > len(REPEATED[0]) + 32


@needs_kernels
def test_an_end_of_sequence_among_right_guesses_ends_the_answer(tmp_path: Path) -> None:
    root = save_family("qwen3", tmp_path)
    plain = start_engine(root, lookup=False)
    reply = ask(plain, REPEATED[0], max_tokens=60).wait().ids()
    plain.close()
    for end in set(reply[20:]):
        engine = start_engine(root, eos_ids=frozenset({end}))
        answer = ask(engine, REPEATED[0], max_tokens=60).wait()
        engine.close()
        assert answer.ids() == reply[: reply.index(end) + 1]
        assert answer.finish() == "stop"
