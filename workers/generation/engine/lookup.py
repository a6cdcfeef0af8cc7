"""Guesses at a sequence's next tokens: what followed the last time that its latest two stood in it (prompt lookup
decoding: speculative decoding, arXiv 2211.17192, without a second model). Answers repeat: their prompt, their code,
their own phrases.

With few sequences a step waits for the weights, and some rows more cost little. A guess changes no text: each row says
which token comes after it, and those behind a wrong guess are thrown away.
"""

from collections.abc import Sequence as Seq

FIRST = 2  # guesses of a sequence that nothing is known of


class Lookup:
    """Of one sequence. `trust`: how many guesses are worth a try; more while they are right."""

    def __init__(self) -> None:
        self.trust = FIRST
        self._after: dict[int, int] = {}  # two tokens → where those after their last occurrence begin
        self._known = 2

    def guess(self, tokens: Seq[int], most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may come after all of `tokens`, which only ever grow."""
        for end in range(self._known, len(tokens)):
            self._after[tokens[end - 2] << 32 | tokens[end - 1]] = end
        self._known = max(self._known, len(tokens))
        begin = self._after.get(tokens[-2] << 32 | tokens[-1]) if len(tokens) > 1 else None
        if begin is None:
            return ()
        # What repeats itself with a short period goes on doing so.
        period = len(tokens) - begin
        return tuple(tokens[begin + at % period] for at in range(min(most, self.trust)))

    def learn(self, tried: int, right: int) -> None:
        """Of the last guesses so many were made, and so many of them right."""
        self.trust = right + 1 if right < tried else max(self.trust, right + 1)
