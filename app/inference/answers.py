"""OpenAI's answer objects from token events: chunks as they come, or one whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.inference.admission import Admitted
from app.inference.wire_events import Done, TokenEvent, TokenLogprob, TopLogprob

Json = dict[str, Any]


@dataclass
class Choice:
    """One of the `n` answers as it grows."""

    text: str = ""
    finish: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)


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


class ChatShape:
    """`chat.completion` and its chunks."""

    def __init__(self, admitted: Admitted) -> None:
        self.admitted = admitted

    def head(self, kind: str) -> Json:
        return {
            "id": self.admitted.task.generation_id,
            "object": kind,
            "created": self.admitted.created,
            "model": self.admitted.model,
            "system_fingerprint": self.admitted.fingerprint,
        }

    def opening(self, index: int) -> Json | None:
        return self.chunk(index, {"role": "assistant", "content": "", "refusal": None}, None, None)

    def piece(self, event: TokenEvent) -> Json:
        logprobs = None if event.lp is None else chat_logprobs(event.lp)
        return self.chunk(event.i, {"content": event.text} if event.text else {}, logprobs, event.finish)

    def chunk(self, index: int, delta: Json, logprobs: Json | None, finish: str | None) -> Json:
        choice: Json = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self.head("chat.completion.chunk") | {"choices": [choice]}

    def usage_chunk(self, done: Done) -> Json:
        none: list[Json] = []
        return self.head("chat.completion.chunk") | {"choices": none, "usage": usage(done)}

    def whole(self, collected: Collected) -> Json:
        choices: list[Json] = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []},
                "logprobs": chat_logprobs(choice.logprobs) if choice.logprobs else None,
                "finish_reason": choice.finish or "stop",
            }
            for index, choice in sorted(collected.choices.items())
        ]
        return self.head("chat.completion") | {"choices": choices, "usage": usage(collected.done)}


class TextShape:
    """`text_completion`, streamed and not; `echo` puts the prompt first."""

    def __init__(self, admitted: Admitted) -> None:
        self.admitted = admitted

    def head(self) -> Json:
        return {
            "id": self.admitted.task.generation_id,
            "object": "text_completion",
            "created": self.admitted.created,
            "model": self.admitted.model,
            "system_fingerprint": self.admitted.fingerprint,
        }

    def opening(self, index: int) -> Json | None:
        return self.chunk(index, self.admitted.prompt, None, None) if self.admitted.prompt else None

    def piece(self, event: TokenEvent) -> Json:
        return self.chunk(event.i, event.text, text_logprobs(event.lp) if event.lp else None, event.finish)

    def chunk(self, index: int, text: str, logprobs: Json | None, finish: str | None) -> Json:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return self.head() | {"choices": [choice]}

    def usage_chunk(self, done: Done) -> Json:
        none: list[Json] = []
        return self.head() | {"choices": none, "usage": usage(done)}

    def whole(self, collected: Collected) -> Json:
        choices: list[Json] = [
            {
                "index": index,
                "text": self.admitted.prompt + choice.text,
                "logprobs": text_logprobs(choice.logprobs) if choice.logprobs else None,
                "finish_reason": choice.finish or "stop",
            }
            for index, choice in sorted(collected.choices.items())
        ]
        return self.head() | {"choices": choices, "usage": usage(collected.done)}


Shape = ChatShape | TextShape


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> Json:
    return {"content": [token_logprob(each) | {"top_logprobs": tops(each.top)} for each in logprobs], "refusal": None}


def tops(alternatives: Sequence[TopLogprob]) -> list[Json]:
    return [token_logprob(each) for each in alternatives]


def token_logprob(each: TopLogprob) -> Json:
    return {"token": each.text, "logprob": each.logprob, "bytes": list(each.text.encode())}


def text_logprobs(logprobs: Sequence[TokenLogprob]) -> Json:
    offsets, position = [], 0
    for each in logprobs:
        offsets.append(position)
        position += len(each.text)
    return {
        "tokens": [each.text for each in logprobs],
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [top_map(each.top) for each in logprobs],
        "text_offset": offsets,
    }


def top_map(alternatives: Sequence[TopLogprob]) -> Mapping[str, float]:
    return {each.text: each.logprob for each in alternatives}
