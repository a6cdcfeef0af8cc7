"""What the API and the generation workers tell each other: the task message and the token stream's events."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

STREAM_MAXLEN = 10_000
CANCELLATIONS = "cancellations"
EVENTS_FIELD = "e"  # a stream entry of tokens: JSON list of TokenEvent
# What XREAD answers: (stream, [(entry id, fields)]); redis-py types it as anything.
StreamEntries = list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]
ALIVE_FIELD = "alive"  # a heartbeat entry: JSON list of generation ids


def token_stream(replica: str) -> str:
    """The Valkey stream that one API replica reads."""
    return f"tokens:{replica}"


class Wire(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class SamplingParams(Wire):
    """As admission decided. `logprobs` (of the answer) and `prompt_logprobs`: None is off, else the number of
    alternatives; `top_k` 0 is off. `grammar`: the answer's form, in llguidance's dialect of Lark.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] = Field(default_factory=list)
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = Field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str | None = None
    ignore_eos: bool = False


class GenerateTask(Wire):
    """One attempt of one call; never logged. `deadline`: unix seconds by which it must have begun.

    `tenant`: the account, for its fair share and its own prefix cache.
    """

    generation_id: str
    attempt: int
    replica: str
    base_id: str
    base_digest: str
    tenant: str
    adapter_digest: str | None
    token_ids: list[int]
    params: SamplingParams
    deadline: float


class TopLogprob(Wire):
    id: int
    text: str
    logprob: float


class TokenLogprob(TopLogprob):
    top: list[TopLogprob] = Field(default_factory=list)


class Done(Wire):
    """The settled count of the whole generation, all choices together."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class WireError(Wire):
    code: str
    message: str


class TokenEvent(Wire):
    """What choice `i` of generation `g`, attempt `a`, gained in one step; `done` or `error` ends it all.

    `plp`: log-probabilities of the prompt's next tokens, in order, from its second on.
    """

    g: str
    a: int
    i: int = 0
    text: str = ""
    ids: list[int] = Field(default_factory=list)
    lp: list[TokenLogprob] | None = None
    plp: list[TokenLogprob] | None = None
    finish: Literal["stop", "length", "cancelled"] | None = None
    done: Done | None = None
    error: WireError | None = None


Events = TypeAdapter(list[TokenEvent])
