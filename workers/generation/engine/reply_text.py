"""Token ids → text that may leave: whole characters only, never past (or into) a stop string."""

from collections.abc import Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """Incremental and UTF-8 safe (models_registry.prompt.Detokenizer)."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class ReplyText:
    """Holds back the longest tail that could still become a stop string; `stopped` once one is complete."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token lets go. A stop string itself is never part of it."""
        return self._release(self._detokenizer.push(token))

    def flush(self) -> str:
        """What is left at the end, an incomplete character replaced."""
        text = self._release(self._detokenizer.flush()) + self._held
        self._held = ""
        return text

    def _release(self, new: str) -> str:
        text = self._held + new
        if not self._stops:
            return text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest tail of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
