"""Tool calls read from an answer's text as it grows; the grammar guarantees how a call is spelled."""

import re
from dataclasses import dataclass, field

from app.ids import new_id
from models_registry.tool_text import CALL_TAIL, OPEN, call_head

HEAD = re.compile(re.escape(call_head("@")).replace("@", '([^"]*)'))


@dataclass
class Call:
    """What one call gained. `id` and `name` come once, with its first piece."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass
class Gain:
    """What a stretch of text brought: content, and pieces of calls, one per call at most."""

    content: str = ""
    calls: list[Call] = field(default_factory=list)


class ToolCallReader:
    """Of one choice. Holds back only what could still become a marker."""

    def __init__(self) -> None:
        self._rest = ""
        self._step = self._read_text
        self.count = 0

    def push(self, text: str, *, last: bool = False) -> Gain:
        """`last`: the answer ends here, so what is held back is what it seems."""
        self._rest += text
        gain = Gain()
        while self._step(gain):
            pass
        if last:
            self._flush(gain)
        return gain

    def _flush(self, gain: Gain) -> None:
        if self._step == self._read_text and self.count == 0:
            gain.content += self._rest
        elif self._step == self._read_arguments and self._rest:
            self._piece(gain).arguments += self._rest
        self._rest = ""

    def _read_text(self, gain: Gain) -> bool:
        """Between calls stands only a line break, which is no content."""
        before, found = self._until(OPEN)
        if self.count == 0:
            gain.content += before
        if found:
            self._step = self._read_head
        return found

    def _read_head(self, gain: Gain) -> bool:
        match = HEAD.match(self._rest)
        if match is None:
            return False
        gain.calls.append(Call(self.count, new_id("call").replace("-", "_"), match[1]))
        self.count += 1
        self._rest = self._rest[match.end() :]
        self._step = self._read_arguments
        return True

    def _read_arguments(self, gain: Gain) -> bool:
        before, found = self._until(CALL_TAIL)
        if before:
            self._piece(gain).arguments += before
        if found:
            self._step = self._read_text
        return found

    def _piece(self, gain: Gain) -> Call:
        """The entry of the call being read."""
        if not gain.calls or gain.calls[-1].index != self.count - 1:
            gain.calls.append(Call(self.count - 1))
        return gain.calls[-1]

    def _until(self, marker: str) -> tuple[str, bool]:
        """Take what comes before the marker (and the marker), or all that cannot belong to it."""
        before, found, after = self._rest.partition(marker)
        if found:
            self._rest = after
            return before, True
        held = next((n for n in range(len(marker) - 1, 0, -1) if before.endswith(marker[:n])), 0)
        cut = len(before) - held
        self._rest = before[cut:]
        return before[:cut], False
