"""Guesses at a sequence's next tokens: what followed the last time that its latest ones stood in it (prompt lookup
decoding: speculative decoding, arXiv 2211.17192, without a second model). Answers repeat: their prompt, their code,
their own phrases.

With few sequences a step waits for the weights, and some rows more cost little. A guess changes no text: each row says
which token comes after it, and those behind a wrong guess are thrown away.
"""

from collections.abc import Sequence as Seq

NGRAM = 2  # latest tokens that must have stood there before
FIRST = 2  # guesses of a sequence that nothing is known of


class Lookup:
    """Of one sequence. It guesses more while it is right, and a single token while it is not."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # tokens → where those after their last occurrence begin
        self._known = NGRAM
        self._trust = FIRST

    def guess(self, tokens: Seq[int], most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may come after all of `tokens`, which only ever grow."""
        for end in range(self._known, len(tokens)):
            self._after[tuple(tokens[end - NGRAM : end])] = end
        self._known = max(self._known, len(tokens))
        begin = self._after.get(tuple(tokens[-NGRAM:]))
        if begin is None:
            return ()
        # What repeats itself with a short period goes on doing so.
        period = len(tokens) - begin
        return tuple(tokens[begin + at % period] for at in range(min(most, self._trust)))

    def learn(self, right: int) -> None:
        """How many of the last guesses were."""
        self._trust = right + 1
