"""Pure decisions about a call: what its messages mean, how it samples, how long it may be."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.errors import ContextLengthExceeded, InvalidValue, UnsupportedContent
from app.inference.schemas import ChatMessage, ChatRequest, CompletionRequest, Sampling
from app.inference.wire_events import SamplingParams
from models_registry.prompt import Message
from models_registry.tool_text import call_text, result_text

# No template knows every role: what a tool answered stands in a user's turn.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "user"}
MAX_STOPS = 4
MAX_STOP_LENGTH = 200
# A token rarely covers this many bytes; longer prompts are refused before the work of encoding them.
MAX_BYTES_PER_TOKEN = 64
# What a listing may preset; a caller's own value wins.
DEFAULTABLE = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "presence_penalty", "frequency_penalty")


def conversation(messages: Sequence[ChatMessage], system_prompt: str | None, words: str = "") -> list[Message]:
    """Plain turns; the listing's system prompt leads when the caller sent none, `words` end the system turn.

    Raises InvalidValue for unknown roles, UnsupportedContent for anything that is not text.
    """
    turns: list[Message] = []
    for at, each in enumerate(messages):
        role, text = role_of(each, at), text_of(each, at)
        if each.role == "tool" and at > 0 and messages[at - 1].role == "tool":
            turns[-1] = Message(role, f"{turns[-1].content}\n{text}")
        else:
            turns.append(Message(role, text))
    if system_prompt and not any(turn.role == "system" for turn in turns):
        turns.insert(0, Message("system", system_prompt))
    return with_words(turns, words)


def with_words(turns: list[Message], words: str) -> list[Message]:
    if not words:
        return turns
    if turns and turns[0].role == "system":
        return [Message("system", f"{turns[0].content}\n\n{words}"), *turns[1:]]
    return [Message("system", words), *turns]


def role_of(message: ChatMessage, at: int) -> str:
    role = ROLES.get(message.role)
    if role is None:
        raise InvalidValue(f"Unknown role {message.role[:40]!r}.", param=f"messages.{at}.role")
    return role


def text_of(message: ChatMessage, at: int) -> str:
    """A turn's text; calls and results of tools in the spelling that the model is taught."""
    if message.role == "tool":
        if not message.tool_call_id:
            raise InvalidValue("A tool's message needs tool_call_id.", param=f"messages.{at}.tool_call_id")
        return result_text(content_of(message, at))
    if not message.tool_calls:
        return content_of(message, at)
    if message.role != "assistant":
        raise InvalidValue("Only the assistant calls tools.", param=f"messages.{at}.tool_calls")
    spoken = [] if message.content is None else [content_of(message, at)]
    calls = [call_text(call.function.name, call.function.arguments) for call in message.tool_calls]
    return "\n".join([*filter(None, spoken), *calls])


def content_of(message: ChatMessage, at: int) -> str:
    param = f"messages.{at}.content"
    if message.content is None:
        raise InvalidValue("content must be text.", param=param)
    if isinstance(message.content, str):
        return message.content
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise UnsupportedContent(f"Content of type {part.type[:40]!r} is not supported.", param=param)
    return "".join(part.text or "" for part in message.content)


def check_bytes(texts: Sequence[str], context_length: int) -> None:
    """Raises ContextLengthExceeded without encoding what can only be too long."""
    if sum(len(text) for text in texts) > context_length * MAX_BYTES_PER_TOKEN:
        raise ContextLengthExceeded(f"The prompt exceeds the context of {context_length} tokens.", param="messages")


def stops(value: str | list[str] | None) -> list[str]:
    """At most 4, none empty."""
    given = [value] if isinstance(value, str) else value or []
    if len(given) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_LENGTH for stop in given):
        raise InvalidValue(f"stop: up to {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters.", param="stop")
    return given


def logit_bias(value: Mapping[str, float] | None, vocabulary: int) -> dict[int, float]:
    """Token ids as JSON keys → ids; each inside the vocabulary, each bias in −100…100."""
    result = {}
    for key, bias in (value or {}).items():
        token = int(key) if key.isascii() and key.isdecimal() and len(key) < 10 else vocabulary
        if token >= vocabulary or not -100 <= bias <= 100:
            raise InvalidValue("logit_bias: token ids of the vocabulary with −100 … 100.", param="logit_bias")
        result[token] = bias
    return result


def wanted_logprobs(request: Sampling) -> int | None:
    """None is off, else the number of alternatives to report."""
    if isinstance(request, ChatRequest):
        if request.top_logprobs and not request.logprobs:
            raise InvalidValue("top_logprobs needs logprobs: true.", param="top_logprobs")
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs if isinstance(request, CompletionRequest) else None


def wanted_prompt_logprobs(request: Sampling) -> int | None:
    """An echo with log-probabilities includes the prompt's. Raises InvalidValue for an answer of no token at all."""
    echo = isinstance(request, CompletionRequest) and bool(request.echo)
    if request.max_tokens == 0 and not echo:
        raise InvalidValue("max_tokens 0 needs echo: true.", param="max_tokens")
    return wanted_logprobs(request) if echo else None


def asked_tokens(request: Sampling, defaults: Mapping[str, Any]) -> int | None:
    """The bound that the caller, or else the listing, put on the answer."""
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        return request.max_completion_tokens
    if request.max_tokens is not None:
        return request.max_tokens
    preset = defaults.get("max_tokens")
    return preset if isinstance(preset, int) else None


def answer_bound(asked: int | None, explicit: bool, prompt_tokens: int, context_length: int, usual: int) -> int:
    """Tokens the answer may have before the wallet is asked. Raises ContextLengthExceeded."""
    room = context_length - prompt_tokens
    if room < 1 or (explicit and asked is not None and asked > room):
        raise ContextLengthExceeded(
            f"This model's context is {context_length} tokens; the prompt has {prompt_tokens}"
            + (f" and the answer may have {asked}." if explicit and asked else "."),
            param="messages",
        )
    return min(usual if asked is None else asked, room)


def sampling_params(
    request: Sampling, defaults: Mapping[str, Any], max_tokens: int, vocabulary: int, grammar: str | None = None
) -> SamplingParams:
    """Everything the engine needs to choose tokens: the caller's wish, else the listing's, else OpenAI's default."""
    given = {name: getattr(request, name) for name in DEFAULTABLE}
    chosen = {name: defaults[name] if given[name] is None and name in defaults else given[name] for name in DEFAULTABLE}
    numbers = {name: value for name, value in chosen.items() if value is not None and name != "max_tokens"}
    return SamplingParams(
        **numbers,
        max_tokens=max_tokens,
        n=request.n or 1,
        seed=None if request.seed is None else request.seed % 2**63,
        stop=stops(request.stop),
        repetition_penalty=request.repetition_penalty or 1.0,
        logit_bias=logit_bias(request.logit_bias, vocabulary),
        logprobs=wanted_logprobs(request),
        prompt_logprobs=wanted_prompt_logprobs(request),
        grammar=grammar,
    )
