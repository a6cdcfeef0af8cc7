"""The scheduler's promises, on random arrivals, cancels and cache sizes: no leak, no starvation, budget kept."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from app.inference.wire_events import SamplingParams
from tests.generation.tiny import Spelled
from workers.generation.engine.batch import Batch, Sample
from workers.generation.engine.kv_cache import BlockPool
from workers.generation.engine.request import EngineRequest, Handle, Sequence
from workers.generation.engine.scheduler import Scheduler

BLOCK = 4


def new_sequence(prompt: int, new: int, adapter: str | None, tenant: str = "") -> Sequence:
    request = EngineRequest(tuple(range(prompt)), SamplingParams(max_tokens=new, temperature=0), adapter, tenant)
    return Sequence(Handle(request, lambda _: None), 0, Spelled(), frozenset(), 10_000)


Work = st.tuples(
    st.integers(1, 40),
    st.integers(1, 20),
    st.sampled_from([None, "a", "b"]),
    st.integers(0, 30),
    st.sampled_from(["anna", "bert"]),
)


@settings(max_examples=60, deadline=None)
@given(
    work=st.lists(Work, min_size=1, max_size=14),
    blocks=st.integers(15, 40),
    max_batch=st.integers(1, 8),
    budget=st.integers(1, 32),
    guessing=st.integers(0, 16),
    cancelled=st.sets(st.integers(0, 13)),
)
def test_everything_ends_within_the_budget_and_no_block_is_lost(
    work: list[tuple[int, int, str | None, int, str]],
    blocks: int,
    max_batch: int,
    budget: int,
    guessing: int,
    cancelled: set[int],
) -> None:
    scheduler = Scheduler(BlockPool(blocks, BLOCK), max_batch, budget, guessing)
    arrivals = sorted(((at, i) for i, (_, _, _, at, _) in enumerate(work)), key=lambda item: item[0])
    sequences = [new_sequence(prompt, new, adapter, tenant) for prompt, new, adapter, _, tenant in work]
    ended = 0
    for step in range(5_000):
        while arrivals and arrivals[0][0] <= step:
            scheduler.add(sequences[arrivals.pop(0)[1]])
        if step == 12:
            for number in cancelled & set(range(len(sequences))):
                sequences[number].handle.cancelled = True
        batch = scheduler.schedule()
        check_batch(scheduler, [chunk.sequence for chunk in batch.chunks], batch.tokens)
        check_guesses(batch, guessing)
        scheduler.advance(batch, samples_of(batch))
        ended += sum(event.finish is not None for _, event in batch.news)
        if ended == len(work):
            break
    assert ended == len(work)
    assert scheduler.cache.used == 0
    assert not scheduler.has_work
    for number, sequence in enumerate(sequences):
        if number not in cancelled:
            assert len(sequence.produced) == work[number][1]
        for at in range(sequence.prompt_length, len(sequence.tokens)):
            assert sequence.tokens[at] == following(sequence.tokens[at - 1], at)


def following(token: int, position: int) -> int:
    """A model of few words: it repeats itself, but not for ever; guesses are right, wrong, and right in part."""
    return (token + (position % 9 == 0)) % 3 + 1 if position % 2 else 1


def samples_of(batch: Batch) -> list[Sample]:
    """What such a model says to each row, given what stands before it in its chunk."""
    samples = []
    for chunk in batch.chunks:
        before = chunk.ids[len(chunk.ids) - len(chunk.rows) :]
        samples += [Sample(following(id_, row.position)) for id_, row in zip(before, chunk.rows, strict=True)]
    return samples


def check_batch(scheduler: Scheduler, members: list[Sequence], tokens: int) -> None:
    assert tokens <= scheduler.max_batch_tokens
    assert len(members) == len(set(map(id, members))) <= scheduler.max_batch
    adapters = [sequence.adapter for sequence in members]
    changes = sum(before != after for before, after in pairwise(adapters))
    assert changes <= max(len(set(adapters)) - 1, 0)
    assert len({block for sequence in scheduler.running for block in sequence.blocks}) == scheduler.cache.used
    check_sharing(scheduler.running)
    for sequence in members:
        assert len(sequence.blocks) * BLOCK >= len(sequence.tokens)


def check_guesses(batch: Batch, guessing: int) -> None:
    for chunk in batch.chunks:
        sequence, end = chunk.sequence, chunk.start + chunk.length
        assert len(chunk.ids) == chunk.length
        assert end <= len(sequence.blocks) * BLOCK
        assert not chunk.guesses or (end < sequence.longest and batch.tokens <= guessing)
        assert sequence.computed == chunk.start


def check_sharing(running: list[Sequence]) -> None:
    """Who shares a block is the same tenant with the same adapter, and all tokens up to the block's end are equal."""
    first: dict[int, tuple[Sequence, int]] = {}
    for sequence in running:
        for place, block in enumerate(sequence.blocks):
            other, other_place = first.setdefault(block, (sequence, place))
            assert place == other_place
            assert sequence.salt == other.salt
            end = (place + 1) * BLOCK
            assert other is sequence or sequence.tokens[:end] == other.tokens[:end]


def run_to_end(scheduler: Scheduler, sequence: Sequence) -> None:
    scheduler.add(sequence)
    while sequence.finish is None:
        batch = scheduler.schedule()
        scheduler.advance(batch, [Sample(1) for _ in batch.sampled])


def test_a_known_beginning_is_not_computed_again_but_for_its_last_token() -> None:
    scheduler = Scheduler(BlockPool(20, BLOCK), 4, 100)
    run_to_end(scheduler, new_sequence(17, 2, "a", "anna"))
    longer, exact = new_sequence(30, 1, "a", "anna"), new_sequence(16, 1, "a", "anna")
    run_to_end(scheduler, longer)
    run_to_end(scheduler, exact)
    assert longer.handle.cached_tokens == 16
    assert exact.handle.cached_tokens == 12


def test_nothing_is_known_to_another_tenant_or_another_adapter() -> None:
    scheduler = Scheduler(BlockPool(20, BLOCK), 4, 100)
    run_to_end(scheduler, new_sequence(17, 2, "a", "anna"))
    for stranger in (new_sequence(17, 1, "a", "bert"), new_sequence(17, 1, "b", "anna"), new_sequence(17, 1, None)):
        run_to_end(scheduler, stranger)
        assert stranger.handle.cached_tokens == 0


def test_a_full_cache_forgets_the_least_recently_used_prompt_first() -> None:
    scheduler = Scheduler(BlockPool(8, BLOCK), 4, 100)
    for tenant in ("anna", "bert", "anna", "carl"):
        run_to_end(scheduler, new_sequence(13, 1, None, tenant))
    again = {tenant: new_sequence(13, 1, None, tenant) for tenant in ("anna", "bert")}
    for sequence in again.values():
        run_to_end(scheduler, sequence)
    assert again["anna"].handle.cached_tokens == 12
    assert again["bert"].handle.cached_tokens < 12


def test_a_tenant_with_many_requests_does_not_hold_up_another() -> None:
    scheduler = Scheduler(BlockPool(100, BLOCK), 4, 8)
    for _ in range(20):
        scheduler.add(new_sequence(8, 3, None, "greedy"))
    late = new_sequence(8, 3, None, "late")
    for _ in range(3):
        batch = scheduler.schedule()
        scheduler.advance(batch, [Sample(1) for _ in batch.sampled])
    scheduler.add(late)
    while late.finish is None:
        batch = scheduler.schedule()
        scheduler.advance(batch, [Sample(1) for _ in batch.sampled])
    assert scheduler.waiting_count > 10


def test_choices_of_one_request_share_its_prompt() -> None:
    request = EngineRequest(tuple(range(10)), SamplingParams(max_tokens=5, temperature=0, n=3), None, "anna")
    handle = Handle(request, lambda _: None)
    scheduler = Scheduler(BlockPool(20, BLOCK), 8, 100)
    for index in range(3):
        scheduler.add(Sequence(handle, index, Spelled(), frozenset(), 10_000))
    other = new_sequence(10, 5, None, "anna")
    scheduler.add(other)
    first = scheduler.schedule()
    assert [(chunk.sequence.index, chunk.length) for chunk in first.chunks] == [(0, 10), (0, 10)]
    assert first.chunks[1].sequence is other
    scheduler.advance(first, [Sample(1), Sample(1)])
    second = scheduler.schedule()
    assert sorted((chunk.sequence.index, chunk.start, chunk.length) for chunk in second.chunks) == [
        (0, 10, 1),
        (0, 10, 1),
        (1, 8, 2),
        (2, 8, 2),
    ]
