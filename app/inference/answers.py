"""OpenAI's answer objects from token events: chunks as they come, or one whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from app.inference.admission import Admitted
from app.inference.tool_calls import Call, Gain, ToolCallReader
from app.inference.wire_events import Done, TokenEvent, TokenLogprob, TopLogprob

Json = dict[str, Any]


@dataclass
class Choice:
    """One of the `n` answers as it grows."""

    text: str = ""
    finish: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass
class Collected:
    """A whole answer: its choices by index, and the settled counts."""

    choices: dict[int, Choice]
    attempt: int = 1
    done: Done = field(default_factory=lambda: Done(prompt_tokens=0, cached_tokens=0, completion_tokens=0))

    def take(self, event: TokenEvent) -> None:
        """A second attempt begins anew: nothing of the first was delivered."""
        if event.a != self.attempt:
            self.choices, self.attempt = {}, event.a
        choice = self.choices.setdefault(event.i, Choice())
        choice.text += event.text
        choice.logprobs += event.lp or []
        choice.prompt_logprobs += event.plp or []
        choice.finish = event.finish or choice.finish
        self.done = event.done or self.done


def usage(done: Done) -> Json:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def head(admitted: Admitted, kind: str) -> Json:
    """What every object of one answer begins with."""
    return {
        "id": admitted.task.generation_id,
        "object": kind,
        "created": admitted.created,
        "model": admitted.model,
        "system_fingerprint": admitted.fingerprint,
    }


def chunk_head(admitted: Admitted, kind: str, wants_usage: bool) -> Json:
    return head(admitted, kind) | ({"usage": None} if wants_usage else {})


class ChatShape:
    """`chat.completion` and its chunks. Where tools are offered, a reader per choice finds the calls in its text.

    `wants_usage`: a last chunk has the counts, and all others say that they do not.
    """

    def __init__(self, admitted: Admitted, wants_usage: bool = False) -> None:
        self.admitted = admitted
        self._head = chunk_head(admitted, "chat.completion.chunk", wants_usage)
        self._readers: dict[int, ToolCallReader] = {}

    def opening(self, index: int) -> Json | None:
        content = None if self.admitted.calls else ""
        return self.chunk(index, {"role": "assistant", "content": content, "refusal": None}, None, None)

    def piece(self, event: TokenEvent) -> Json | None:
        """None when nothing of it may be told yet."""
        logprobs = None if event.lp is None else chat_logprobs(event.lp)
        delta: Json = {"content": event.text} if event.text else {}
        finish: str | None = event.finish
        if self.admitted.calls:
            reader = self._readers.setdefault(event.i, ToolCallReader())
            delta = delta_of(reader.push(event.text, last=finish is not None))
            finish = finish_of(finish, reader)
        return self.chunk(event.i, delta, logprobs, finish) if delta or finish or logprobs else None

    def chunk(self, index: int, delta: Json, logprobs: Json | None, finish: str | None) -> Json:
        choice: Json = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._head | {"choices": [choice]}

    def closing(self, done: Done) -> Json | None:
        return closing(self._head, done)

    def whole(self, collected: Collected) -> Json:
        choices = [self.choice(index, choice) for index, choice in sorted(collected.choices.items())]
        return head(self.admitted, "chat.completion") | {"choices": choices, "usage": usage(collected.done)}

    def choice(self, index: int, choice: Choice) -> Json:
        message: Json = {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []}
        finish: str | None = choice.finish or "stop"
        if self.admitted.calls:
            reader = ToolCallReader()
            gain = reader.push(choice.text, last=True)
            message["content"] = gain.content or None
            message |= {"tool_calls": [call_of(call) for call in gain.calls]} if gain.calls else {}
            finish = finish_of(finish, reader)
        logprobs = chat_logprobs(choice.logprobs) if choice.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


class TextShape:
    """`text_completion`, streamed and not; `echo` puts the prompt first, and its log-probabilities if asked.

    `wants_usage`: as of a ChatShape.
    """

    def __init__(self, admitted: Admitted, wants_usage: bool = False) -> None:
        self.admitted = admitted
        self._head = chunk_head(admitted, "text_completion", wants_usage)
        self._scores = {index: TextLogprobs(admitted) for index in range(admitted.task.params.n)}

    def opening(self, index: int) -> Json | None:
        return self.chunk(index, self.admitted.prompt, None, None) if self.admitted.prompt else None

    def piece(self, event: TokenEvent) -> Json | None:
        """None when nothing of it may be told yet."""
        logprobs = self._scores[event.i].take(event.plp or [], event.lp or [])
        if not (event.text or event.finish or logprobs):
            return None
        return self.chunk(event.i, event.text, logprobs, event.finish)

    def chunk(self, index: int, text: str, logprobs: Json | None, finish: str | None) -> Json:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return self._head | {"choices": [choice]}

    def closing(self, done: Done) -> Json | None:
        return closing(self._head, done)

    def whole(self, collected: Collected) -> Json:
        choices: list[Json] = [
            {
                "index": index,
                "text": self.admitted.prompt + choice.text,
                "logprobs": self._scores[index].take(choice.prompt_logprobs, choice.logprobs),
                "finish_reason": choice.finish or "stop",
            }
            for index, choice in sorted(collected.choices.items())
        ]
        return head(self.admitted, "text_completion") | {"choices": choices, "usage": usage(collected.done)}


Shape = ChatShape | TextShape


def closing(first: Json, done: Done) -> Json | None:
    """The chunk with the counts, if they are wanted; `first`: what chunks begin with."""
    none: list[Json] = []
    return first | {"choices": none, "usage": usage(done)} if "usage" in first else None


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> Json:
    return {"content": [token_logprob(each) | {"top_logprobs": tops(each.top)} for each in logprobs], "refusal": None}


def tops(alternatives: Sequence[TopLogprob]) -> list[Json]:
    return [token_logprob(each) for each in alternatives]


def token_logprob(each: TopLogprob) -> Json:
    return {"token": each.text, "logprob": each.logprob, "bytes": list(each.text.encode())}


class TextLogprobs:
    """The old completions' parallel lists, over one choice. An echoed prompt's first token has no probability."""

    def __init__(self, admitted: Admitted) -> None:
        self._first = admitted.first if admitted.task.params.prompt_logprobs is not None else None
        self._offset = 0

    def take(self, prompt: Sequence[TokenLogprob], answer: Sequence[TokenLogprob]) -> Json | None:
        """What these tokens add; None for nothing. Offsets count the characters told so far."""
        scored = [*prompt, *answer]
        unscored = [] if self._first is None or not scored else [self._first]
        self._first = None if unscored else self._first
        if not scored:
            return None
        texts = [*unscored, *(each.text for each in scored)]
        ends = list(accumulate(map(len, texts), initial=self._offset))
        self._offset = ends[-1]
        blank = [None] * len(unscored)
        return {
            "tokens": texts,
            "token_logprobs": [*blank, *(each.logprob for each in scored)],
            "top_logprobs": [*blank, *(top_map(each.top) for each in scored)],
            "text_offset": ends[:-1],
        }


def top_map(alternatives: Sequence[TopLogprob]) -> Mapping[str, float]:
    return {each.text: each.logprob for each in alternatives}


def delta_of(gain: Gain) -> Json:
    content: Json = {"content": gain.content} if gain.content else {}
    return content | ({"tool_calls": [piece_of(call) for call in gain.calls]} if gain.calls else {})


def piece_of(call: Call) -> Json:
    """A streamed piece: id and name with the first one only."""
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index} | call_of(call)


def call_of(call: Call) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def finish_of(finish: str | None, reader: ToolCallReader) -> str | None:
    return "tool_calls" if finish == "stop" and reader.count else finish
