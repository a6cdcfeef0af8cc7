"""What only the vLLM engine must mind: its slots for adapters, and a process that can die. See `make testvllm`."""

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.generation.implementations import ADAPTERS, PLACES, needs_vllm, start_vllm
from tests.generation.tiny import ask, prompts, reference
from workers.generation.engine.protocol import AdapterNotLoaded, Engine, EngineClosed

pytestmark = needs_vllm
IDS = prompts(4)[3]


@pytest.fixture(scope="module")
def death() -> threading.Event:
    return threading.Event()


@pytest.fixture(scope="module")
def engine(llama: Path, death: threading.Event) -> Iterator[Engine]:
    engine = start_vllm(llama / "base", lambda: None, death.set)
    yield engine
    engine.close()


def fill(engine: Engine, root: Path, prefix: str) -> list[str]:
    names = [f"{prefix}{number}" for number in range(PLACES)]
    for number, name in enumerate(names):
        engine.load_adapter(name, root / ADAPTERS[number % len(ADAPTERS)])
    return names


def test_the_base_answers_as_itself_beside_as_many_adapters_as_fit(engine: Engine, llama: Path) -> None:
    names = fill(engine, llama, "full")
    answers = [ask(engine, IDS, name, ignore_eos=True) for name in (*names, None)]
    expected = [*(ADAPTERS[number % len(ADAPTERS)] for number in range(PLACES)), None]
    assert [answer.wait().ids() for answer in answers] == [reference(llama, name, IDS, 24) for name in expected]


def test_the_least_recently_used_adapter_makes_room_and_a_used_one_never(engine: Engine, llama: Path) -> None:
    names = fill(engine, llama, "first")
    begun = threading.Semaphore(0)
    busy = [
        ask(engine, IDS, name, ignore_eos=True, max_tokens=200, on_event=lambda _: begun.release()) for name in names
    ]
    assert begun.acquire(timeout=60)
    engine.load_adapter("one more", llama / "a0")
    with pytest.raises(AdapterNotLoaded):
        ask(engine, IDS, "one more")
    for answer in busy:
        engine.cancel(answer.handle)
        answer.wait()
    engine.load_adapter("one more", llama / "a0")
    assert ask(engine, IDS, "one more", ignore_eos=True).wait().ids() == reference(llama, "a0", IDS, 24)
    with pytest.raises(AdapterNotLoaded):
        ask(engine, IDS, names[0])


def test_an_adapter_of_too_high_a_rank_is_refused(engine: Engine, llama: Path, tmp_path: Path) -> None:
    for file in (llama / "a3").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes().replace(b'"r": 16', b'"r": 99'))
    with pytest.raises(ValueError, match="rank"):
        engine.load_adapter("wide", tmp_path)


def test_a_parameter_that_vllm_does_not_take_fails_its_own_request_only(engine: Engine) -> None:
    other = ask(engine, IDS, ignore_eos=True)
    with pytest.raises(ValueError, match="presence_penalty"):
        ask(engine, IDS, presence_penalty=100)
    sick = ask(engine, IDS, logit_bias={10_000: 1})
    assert sick.handle.wait(30)
    assert sick.handle.error is not None
    assert other.wait().finish() == "length"


def test_when_vllm_dies_open_requests_fail_and_the_owner_is_told(engine: Engine, death: threading.Event) -> None:
    begun = threading.Event()
    answer = ask(engine, IDS, ignore_eos=True, max_tokens=200, on_event=lambda _: begun.set())
    assert begun.wait(60)
    children = psutil.Process().children(recursive=True)
    living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    next(child for child in living if "EngineCore" in " ".join((child.name(), *child.cmdline()))).kill()
    assert answer.handle.wait(60)
    assert answer.handle.error is not None
    assert death.wait(10)
    with pytest.raises(EngineClosed):
        ask(engine, IDS)
