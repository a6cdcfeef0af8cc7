"""Who computes what in the next step: continuous batching with chunked prefill (Orca, Sarathi). Pure Python.

Each step first gives every decoding sequence its one token, then fills the token budget with prefill,
oldest first. A full cache preempts the youngest sequence, which later recomputes from its tokens.
"""

from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from workers.generation.engine.kv_cache import BlockPool
from workers.generation.engine.request import Handle, Sequence, StepEvent, TokenLogprob


@dataclass(frozen=True)
class Sample:
    """The sampler's choice for one sequence."""

    token: int
    logprob: TokenLogprob | None = None


@dataclass(eq=False)
class Chunk:
    """`length` tokens of a sequence from position `start`, computed in one step."""

    sequence: Sequence
    start: int
    length: int

    @property
    def samples(self) -> bool:
        """Only the chunk that reaches the last token needs logits."""
        return self.start + self.length == len(self.sequence.tokens)

    @property
    def scores(self) -> bool:
        """All its rows need logits: the prompt's log-probabilities are wanted."""
        return self.sequence.scores_prompt


@dataclass
class Batch:
    """One step's work, tokens of one adapter contiguous; and what the step has to tell."""

    chunks: list[Chunk] = field(default_factory=list)
    news: list[tuple[Handle, StepEvent]] = field(default_factory=list)

    @property
    def sampled(self) -> list[Sequence]:
        return [chunk.sequence for chunk in self.chunks if chunk.samples]

    @property
    def tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)


class Scheduler:
    """Owns every open sequence, from `add` until it finishes."""

    def __init__(self, cache: BlockPool, max_batch: int, max_batch_tokens: int) -> None:
        self.cache = cache
        self.max_batch = max_batch
        self.max_batch_tokens = max(max_batch_tokens, max_batch)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> Batch:
        """The next step: cancelled sequences leave, decoding ones go on, prefill takes what budget is left."""
        batch = Batch()
        self._drop_cancelled(batch)
        self._make_room()
        decoding = [sequence for sequence in self.running if sequence.pending == 1]
        batch.chunks += [Chunk(sequence, sequence.computed, 1) for sequence in decoding]
        budget = self.max_batch_tokens - len(batch.chunks)
        for sequence in [sequence for sequence in self.running if sequence.pending > 1]:
            budget -= self._prefill(batch, sequence, budget)
        while budget > 0 and self.waiting and self._admit(self.waiting[0]):
            budget -= self._prefill(batch, self.running[-1], budget)
        batch.chunks.sort(key=lambda chunk: chunk.sequence.adapter or "")
        return batch

    def advance(self, batch: Batch, samples: Seq[Sample]) -> None:
        """Record what the step computed; `samples` in the order of `batch.sampled`."""
        sampled = batch.sampled
        for chunk in batch.chunks:
            chunk.sequence.computed += chunk.length
        for sequence, sample in zip(sampled, samples, strict=True):
            batch.news.append((sequence.handle, sequence.append(sample.token, sample.logprob)))
            if sequence.finish is not None:
                self._leave(sequence)

    def clear(self) -> list[Sequence]:
        """Drop everything (the engine failed or closes); returns what was open."""
        dropped = [*self.running, *self.waiting]
        for sequence in dropped:
            self.cache.release(sequence.blocks)
        self.running.clear()
        self.waiting.clear()
        return dropped

    def _drop_cancelled(self, batch: Batch) -> None:
        for sequence in [s for s in (*self.running, *self.waiting) if s.handle.cancelled]:
            batch.news.append((sequence.handle, sequence.cancel()))
            self._leave(sequence)

    def _make_room(self) -> None:
        """Every decoding sequence gets a place for its next token, oldest first; the youngest gives way."""
        position = 0
        while position < len(self.running):
            sequence = self.running[position]
            if self.cache.grow(sequence.blocks, len(sequence.tokens)):
                position += 1
            else:
                self._preempt(self.running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.computed = 0
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _admit(self, sequence: Sequence) -> bool:
        """All places of its present tokens at once, so that a prefill under way never waits for memory."""
        if len(self.running) >= self.max_batch or not self.cache.grow(sequence.blocks, len(sequence.tokens)):
            return False
        self.waiting.popleft()
        self.running.append(sequence)
        sequence.handle.started = True
        return True

    def _prefill(self, batch: Batch, sequence: Sequence, budget: int) -> int:
        length = min(sequence.pending, budget)
        if length > 0:
            batch.chunks.append(Chunk(sequence, sequence.computed, length))
        return length

    def _leave(self, sequence: Sequence) -> None:
        self.cache.release(sequence.blocks)
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
