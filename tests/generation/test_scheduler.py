"""The scheduler's promises, on random arrivals, cancels and cache sizes: no leak, no starvation, budget kept."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from app.inference.wire_events import SamplingParams
from tests.generation.tiny import Spelled
from workers.generation.engine.kv_cache import BlockPool
from workers.generation.engine.request import EngineRequest, Handle, Sequence
from workers.generation.engine.scheduler import Sample, Scheduler

BLOCK = 4


def new_sequence(prompt: int, new: int, adapter: str | None) -> Sequence:
    request = EngineRequest(tuple(range(prompt)), SamplingParams(max_tokens=new, temperature=0), adapter)
    return Sequence(Handle(request, lambda _: None), 0, Spelled(), frozenset(), 10_000)


Work = st.tuples(st.integers(1, 40), st.integers(1, 20), st.sampled_from([None, "a", "b"]), st.integers(0, 30))


@settings(max_examples=60, deadline=None)
@given(
    work=st.lists(Work, min_size=1, max_size=14),
    blocks=st.integers(15, 40),
    max_batch=st.integers(1, 8),
    budget=st.integers(1, 32),
    cancelled=st.sets(st.integers(0, 13)),
)
def test_everything_ends_within_the_budget_and_no_block_is_lost(
    work: list[tuple[int, int, str | None, int]], blocks: int, max_batch: int, budget: int, cancelled: set[int]
) -> None:
    scheduler = Scheduler(BlockPool(blocks, BLOCK), max_batch, budget)
    arrivals = sorted(((at, i) for i, (_, _, _, at) in enumerate(work)), key=lambda item: item[0])
    sequences = [new_sequence(prompt, new, adapter) for prompt, new, adapter, _ in work]
    ended = 0
    for step in range(5_000):
        while arrivals and arrivals[0][0] <= step:
            scheduler.add(sequences[arrivals.pop(0)[1]])
        if step == 12:
            for number in cancelled & set(range(len(sequences))):
                sequences[number].handle.cancelled = True
        batch = scheduler.schedule()
        check_batch(scheduler, [chunk.sequence for chunk in batch.chunks], batch.tokens)
        scheduler.advance(batch, [Sample(1) for _ in batch.sampled])
        ended += sum(event.finish is not None for _, event in batch.news)
        if ended == len(work):
            break
    assert ended == len(work)
    assert scheduler.cache.used == 0
    assert not scheduler.has_work
    for number, sequence in enumerate(sequences):
        if number not in cancelled:
            assert len(sequence.produced) == work[number][1]


def check_batch(scheduler: Scheduler, members: list[Sequence], tokens: int) -> None:
    assert tokens <= scheduler.max_batch_tokens
    assert len(members) == len(set(map(id, members))) <= scheduler.max_batch
    adapters = [sequence.adapter for sequence in members]
    changes = sum(before != after for before, after in pairwise(adapters))
    assert changes <= max(len(set(adapters)) - 1, 0)
    owned = [block for sequence in scheduler.running for block in sequence.blocks]
    assert len(owned) == len(set(owned)) == scheduler.cache.used
    for sequence in members:
        assert len(sequence.blocks) * BLOCK >= len(sequence.tokens)
