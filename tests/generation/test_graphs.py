"""Decoding steps that a GPU records and replays. Here their calls are made on the same buffers, with FlexAttention
compiled for this processor; `gpu` marks what needs the device itself.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from tests.generation.tiny import FAMILIES, ask, prompts, reference, save_family, start_engine
from workers.generation.engine.cuda import graphs, pages, slots
from workers.generation.engine.cuda.graphs import DecodeGraphs
from workers.generation.engine.engine import TorchEngine

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and not os.environ.get("CI"),
    reason="FlexAttention on a processor is compiled by g++",
)
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SEQUENCES, PLACES = 4, 480
# What would stop a recording: numbers that the host waits for, shapes that depend on them, tensors made of the host's.
OF_THE_HOST = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::lift_fresh"}


class Counted:
    """How many steps were replayed, and how many were not."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.replayed = self.others = 0
        own = DecodeGraphs.logits

        def logits(*args: object) -> object:
            found = own(*args)  # type: ignore[arg-type]
            self.replayed, self.others = self.replayed + (found is not None), self.others + (found is None)
            return found

        patch.setattr(DecodeGraphs, "logits", logits)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def start(root: Path, sequences: int = SEQUENCES) -> TorchEngine:
    """With torch's operations, then with decoding steps as on a GPU. Attention is compiled for this many pages, and for
    the threads of who compiles it: here, where the engine's own thread does so on a GPU.
    """
    engine = start_engine(
        root, kernels=False, max_batch=sequences, kv_cache_tokens=PLACES, threads=torch.get_num_threads()
    )
    engine.model_runner.use_graphs(sequences)
    return engine


@pytest.fixture
def recorded(llama: Path) -> Iterator[TorchEngine]:
    engine = start(llama)
    yield engine
    engine.close()


def jobs(count: int) -> list[tuple[list[int], str | None]]:
    return [(ids, None if i % 5 == 4 else f"a{i % 5}") for i, ids in enumerate(prompts(count))]


@needs_compiler
@pytest.mark.parametrize(("kind", "sequences"), [("llama", SEQUENCES), ("gemma3", 1)])
def test_replayed_steps_answer_as_transformers_does_in_any_company(
    kind: str, sequences: int, tmp_path: Path, counted: Counted
) -> None:
    root = save_family(kind, tmp_path)
    engine = start(root, sequences)
    answers = [ask(engine, ids, adapter) for ids, adapter in jobs(10)]
    got = [answer.wait().ids() for answer in answers]
    engine.close()
    assert got == [reference(root, adapter, ids, 24) for ids, adapter in jobs(10)]
    assert counted.replayed > 20


@needs_compiler
def test_sequences_that_share_pages_answer_as_transformers_does(
    llama: Path, recorded: TorchEngine, counted: Counted
) -> None:
    asked = [[*prompts(20)[19], *ids] for ids in prompts(6)]
    ask(recorded, asked[0]).wait()
    answers = [ask(recorded, ids) for ids in asked]
    assert [answer.wait().ids() for answer in answers] == [reference(llama, None, ids, 24) for ids in asked]
    assert all(answer.handle.cached_tokens > 0 for answer in answers)
    assert counted.replayed > 0


@needs_compiler
def test_preempted_sequences_answer_as_transformers_does(llama: Path, recorded: TorchEngine, counted: Counted) -> None:
    asked = prompts(20)[15:]
    answers = [ask(recorded, ids, max_tokens=100) for ids in asked]
    assert [answer.wait().ids() for answer in answers] == [reference(llama, None, ids, 100) for ids in asked]
    assert recorded.stats().preemptions > 0 < counted.replayed


@needs_compiler
def test_adapters_of_too_high_a_rank_and_too_many_adapters_are_served_by_plain_steps(
    llama: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "SLOTS", 2)
    monkeypatch.setattr(slots, "RANK", 12)
    engine = start(llama)
    expected = [reference(llama, adapter, ids, 24) for ids, adapter in jobs(4)]
    alone = [ask(engine, ids, adapter).wait().ids() for ids, adapter in jobs(3)]
    assert counted.replayed == 3 * 23  # three adapters take turns in two slots
    high = ask(engine, *jobs(4)[3]).wait().ids()
    assert counted.replayed == 3 * 23
    together = [ask(engine, ids, adapter) for ids, adapter in jobs(3)]
    assert [*alone, high] == expected
    assert [answer.wait().ids() for answer in together] == expected[:3]
    engine.close()


@needs_compiler
def test_poison_in_a_slot_never_reaches_another_request(recorded: TorchEngine, llama: Path, counted: Counted) -> None:
    ids = prompts(3)[2]
    recorded.load_adapter("poison", llama / "a2")
    for down, up in recorded.bank.get("poison").factors.values():
        down.fill_(float("nan"))
        up.fill_(float("inf"))
    sick = ask(recorded, ids, "poison", max_tokens=30)
    well = [ask(recorded, ids, adapter) for adapter in ("a1", None)]
    sick.wait()
    assert [answer.wait().ids() for answer in well] == [reference(llama, adapter, ids, 24) for adapter in ("a1", None)]
    assert counted.replayed > 10


@needs_compiler
def test_no_step_compiles_attention_anew_once_all_are_recorded(recorded: TorchEngine, counted: Counted) -> None:
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0
    answers = [ask(recorded, ids, adapter) for ids, adapter in jobs(10)]
    for answer in answers:
        answer.wait()
    assert counted.replayed > 0 < counted.others
    assert counters["stats"]["unique_graphs"] == compiled


@needs_compiler
def test_a_replayed_step_needs_nothing_of_the_host(recorded: TorchEngine) -> None:
    own = recorded.model_runner._graphs
    assert own is not None
    with profile(activities=[ProfilerActivity.CPU]) as seen, torch.inference_mode():
        own.steps[SEQUENCES, True]()
    names = {event.key for event in seen.key_averages()}
    assert "aten::index_copy_" in names
    assert not names & OF_THE_HOST


@needs_compiler
def test_a_recording_whose_logits_differ_is_not_used(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "attend_pages", lambda query, *_, **__: query)
    engine = start(llama)
    ids, adapter = jobs(2)[1]
    assert engine.model_runner._graphs is None
    assert ask(engine, ids, adapter).wait().ids() == reference(llama, adapter, ids, 24)
    engine.close()


def test_where_a_step_cannot_be_recorded_plain_ones_serve(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(graphs, "AdapterSlots", broken)
    engine = start(llama)
    ids, adapter = jobs(2)[1]
    assert ask(engine, ids, adapter).wait().ids() == reference(llama, adapter, ids, 24)
    engine.close()


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=needs_gpu) for kind in FAMILIES])
def test_a_gpu_replays_its_steps_and_answers_as_transformers_does(kind: str, tmp_path: Path, counted: Counted) -> None:
    root = save_family(kind, tmp_path)
    engine = start_engine(root, device="cuda", max_batch=SEQUENCES)
    answers = [ask(engine, ids, adapter) for ids, adapter in jobs(10)]
    got = [answer.wait().ids() for answer in answers]
    engine.close()
    assert got == [reference(root, adapter, ids, 24) for ids, adapter in jobs(10)]
    assert counted.replayed > 20
