"""Chat and text completions on the wire, in OpenAI's shapes. Unknown fields are refused."""

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool

from app.wire import Strict

Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
MAX_TOOLS = 128
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class TextPart(Strict):
    """`type` is checked later, so that an image gets its own answer."""

    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None


class FunctionCall(Strict):
    """`arguments`: JSON as text. `parsed_arguments` is the SDK's own note, read by nobody here."""

    name: FunctionName
    arguments: str
    parsed_arguments: Any = None


class ToolCall(Strict):
    id: str
    type: Literal["function"]
    function: FunctionCall
    index: int | None = None


class ChatMessage(Strict):
    """The last three fields come back with answers that the SDK returns to us; nothing in them is used."""

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = Field(default=None, max_length=64)
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_call_id: str | None = None
    # People send answers back as they got them: what is in ours, or null in OpenAI's, is accepted.
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    parsed: Any = None


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchemaFormat(Strict):
    """`body` is checked later, so that a bad schema gets its own answer."""

    name: FunctionName
    description: str | None = None
    body: Any = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: str
    json_schema: JsonSchemaFormat | None = None


class FunctionDefinition(Strict):
    name: FunctionName
    description: str | None = Field(default=None, max_length=4_096)
    parameters: Any = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Strict):
    name: str


class NamedToolChoice(Strict):
    type: Literal["function"]
    function: NamedFunction


class Sampling(Strict):
    """What both kinds of completion share. None means: the listing's default, else OpenAI's."""

    model: str = Field(min_length=1, max_length=300)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000)] | None = None
    min_p: Probability | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stop: str | list[str] | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=4)] | None = None
    logit_bias: dict[str, float] | None = Field(default=None, max_length=300)
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    # Accepted and not acted on, as documented.
    user: str | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Sampling):
    messages: list[ChatMessage] = Field(min_length=1, max_length=2_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None


class CompletionRequest(Sampling):
    """`max_tokens` 0 with `echo` only scores the prompt."""

    prompt: str | list[str] | list[int]
    max_tokens: int | None = Field(default=None, ge=0, le=1_000_000)
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    suffix: None = None
    best_of: Literal[1] | None = None
