"""Who computes what in the next step: continuous batching with chunked prefill (Orca, Sarathi). Pure Python.

Each step first gives every decoding sequence its next token, then fills the token budget with prefill, oldest first; a
small step is filled up with guesses (`lookup.py`). Of those that wait, the tenant with the fewest running sequences
comes next. A full cache preempts the youngest sequence, which later recomputes what the cache has forgotten of its
tokens.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence as Seq
from itertools import islice

from workers.generation.engine.batch import Batch, Chunk, Sample
from workers.generation.engine.kv_cache import BlockPool, chain
from workers.generation.engine.request import Sequence, StepEvent, joined


class Scheduler:
    """Owns every open sequence, from `add` until it finishes."""

    def __init__(self, cache: BlockPool, max_batch: int, max_batch_tokens: int, guessing: int = 0) -> None:
        """`guessing`: a step of fewer rows is filled up to so many with guesses."""
        self.cache = cache
        self.guessing = guessing
        self.max_batch = max_batch
        self.max_batch_tokens = max(max_batch_tokens, max_batch)
        self.waiting: OrderedDict[str, deque[Sequence]] = OrderedDict()  # by tenant; who came first stands first
        self.running: list[Sequence] = []
        self.preemptions = self.guessed = self.guessed_right = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def waiting_count(self) -> int:
        """Safe to ask from another thread."""
        return sum(len(queue) for queue in list(self.waiting.values()))

    def add(self, sequence: Sequence) -> None:
        self.waiting.setdefault(sequence.request.tenant, deque()).append(sequence)

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
        while budget > 0 and (next_one := self._next_waiting()) is not None and self._admit(next_one):
            budget -= self._prefill(batch, next_one, budget)
        self._guess(batch)
        batch.chunks.sort(key=lambda chunk: chunk.sequence.adapter or "")
        return batch

    def advance(self, batch: Batch, samples: Seq[Sample]) -> None:
        """Record what the step computed; `samples` in the order of `batch.sampled`."""
        if len(samples) != sum(chunk.row_count for chunk in batch.chunks):
            raise ValueError("not one sample per row")
        rest = iter(samples)
        for chunk in batch.chunks:
            own = list(islice(rest, chunk.row_count))
            chunk.sequence.computed += chunk.length - len(chunk.guesses)
            self._remember(chunk.sequence)
            if own:
                self._take(chunk, own, batch)

    def _take(self, chunk: Chunk, samples: Seq[Sample], batch: Batch) -> None:
        """The sampled tokens up to the first that was not guessed: what came of the rows behind it is of no use."""
        sequence, events, tried = chunk.sequence, list[StepEvent](), len(chunk.guesses)
        for sample, guess in zip(samples, (*chunk.guesses, None), strict=True):
            events.append(sequence.append(sample.token, sample.logprob))
            if sequence.finish is not None or sample.token != guess:
                break
            sequence.computed += 1
        right = len(events) - 1
        if tried:
            sequence.lookup.learn(tried, right)
            self._remember(sequence)
            self.guessed, self.guessed_right = self.guessed + tried, self.guessed_right + right
        batch.news.append((sequence.handle, joined(events)))
        if sequence.finish is not None:
            self._leave(sequence)

    def clear(self) -> list[Sequence]:
        """Drop everything (the engine failed or closes); returns what was open."""
        dropped = [*self.running, *self._all_waiting()]
        for sequence in dropped:
            self.cache.release(sequence.blocks)
        self.running.clear()
        self.waiting.clear()
        return dropped

    def _guess(self, batch: Batch) -> None:
        """Fill a small step up, most trusted first; only places that a sequence has already are used."""
        most = min(self.guessing, self.max_batch_tokens) - batch.tokens
        if most < 1:
            return
        decoding = [chunk for chunk in batch.chunks if chunk.samples and chunk.sequence.is_guessable]
        decoding.sort(key=lambda chunk: -chunk.sequence.lookup.trust)
        for left, chunk in zip(range(len(decoding), 0, -1), decoding, strict=True):
            sequence = chunk.sequence
            room = min(len(sequence.blocks) * self.cache.block_size, sequence.longest - 1) - len(sequence.tokens)
            chunk.guesses = sequence.lookup.guess(sequence.tokens, min(-(-most // left), room))
            chunk.length += len(chunk.guesses)
            most -= len(chunk.guesses)

    def _drop_cancelled(self, batch: Batch) -> None:
        for sequence in [s for s in (*self.running, *self._all_waiting()) if s.handle.cancelled]:
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
        self.waiting.setdefault(sequence.request.tenant, deque()).appendleft(sequence)
        self.waiting.move_to_end(sequence.request.tenant, last=False)
        self.preemptions += 1

    def _admit(self, sequence: Sequence) -> bool:
        """All places of its present tokens at once, so that a prefill under way never waits for memory.

        What the cache knows of its beginning is not computed again; the last token is, for its logits.
        """
        if len(self.running) >= self.max_batch:
            return False
        if not sequence.scores_prompt:
            sequence.blocks += self.cache.find(sequence.salt, sequence.tokens[:-1])
        known = len(sequence.blocks)
        if not self.cache.grow(sequence.blocks, len(sequence.tokens)):
            self.cache.release(sequence.blocks)
            return False
        sequence.computed = known * self.cache.block_size
        sequence.keyed, sequence.last_key = 0, sequence.salt
        if not sequence.handle.started and sequence.index == 0:
            sequence.handle.cached_tokens = sequence.computed
        self._forget_waiting(sequence)
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
            self._forget_waiting(sequence)

    def _next_waiting(self) -> Sequence | None:
        """The first of the tenant that has the fewest sequences running; between equals, who has waited longer.

        A request's further choices wait until the prompt that they share is in the cache.
        """
        if not self.waiting:
            return None
        running = Counter(sequence.request.tenant for sequence in self.running)
        begun = {sequence.handle for sequence in self.running}
        begun -= {sequence.handle for sequence in self.running if sequence.computed >= sequence.prompt_length}
        for tenant in sorted(self.waiting, key=lambda tenant: running[tenant]):
            for sequence in self.waiting[tenant]:
                shares = sequence.prompt_length > self.cache.block_size and not sequence.scores_prompt
                if sequence.handle not in begun or not shares:
                    return sequence
        return None

    def _all_waiting(self) -> list[Sequence]:
        return [sequence for queue in self.waiting.values() for sequence in queue]

    def _forget_waiting(self, sequence: Sequence) -> None:
        """Out of its tenant's queue, which then stands behind the others."""
        tenant = sequence.request.tenant
        self.waiting[tenant].remove(sequence)
        if self.waiting[tenant]:
            self.waiting.move_to_end(tenant)
        else:
            del self.waiting[tenant]

    def _remember(self, sequence: Sequence) -> None:
        """Blocks that this step filled can serve later prompts that begin the same."""
        size = self.cache.block_size
        while (sequence.keyed + 1) * size <= sequence.computed:
            begin = sequence.keyed * size
            sequence.last_key = chain(sequence.last_key, sequence.tokens[begin : begin + size])
            self.cache.remember(sequence.blocks[sequence.keyed], sequence.last_key)
            sequence.keyed += 1
