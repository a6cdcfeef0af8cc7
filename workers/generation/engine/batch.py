"""One step's work: which tokens of which sequences, and whose logits are sampled from."""

from dataclasses import dataclass, field
from typing import NamedTuple

from workers.generation.engine.request import Handle, Sequence, StepEvent, TokenLogprob


@dataclass(frozen=True)
class Sample:
    """The sampler's choice for one row."""

    token: int
    logprob: TokenLogprob | None = None


class Row(NamedTuple):
    """A row of logits foretells the token of `sequence` at `position`, if all before it are as they were guessed."""

    sequence: Sequence
    position: int


@dataclass(eq=False)
class Chunk:
    """`length` tokens of a sequence from position `start`, computed in one step; the last of them may be `guesses`.

    What it says of its rows holds until the step's tokens are appended to the sequence.
    """

    sequence: Sequence
    start: int
    length: int
    guesses: tuple[int, ...] = ()

    @property
    def ids(self) -> list[int]:
        return [*self.sequence.tokens[self.start : self.start + self.length], *self.guesses]

    @property
    def samples(self) -> bool:
        """Only the chunk that reaches the last token needs logits."""
        return self.start + self.length - len(self.guesses) == len(self.sequence.tokens)

    @property
    def row_count(self) -> int:
        """How many logits are sampled from: the last token's and the guesses'."""
        return 1 + len(self.guesses) if self.samples else 0

    @property
    def rows(self) -> list[Row]:
        known = len(self.sequence.tokens)
        return [Row(self.sequence, known + at) for at in range(self.row_count)]

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
    def sampled(self) -> list[Row]:
        return [row for chunk in self.chunks for row in chunk.rows]

    @property
    def tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)
