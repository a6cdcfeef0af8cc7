"""Structured output, tools and prompt scores with the official `openai` package, unpatched, on SmolLM2."""

import json
import math
from typing import Annotated, Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.e2e.conftest import BASE, Person

Name = Annotated[str, Field(max_length=20)]


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")  # a property of its own invention may be longer than an answer
    name: Name
    continent: Literal["Africa", "America", "Asia", "Europe", "Oceania"]


class Answer(BaseModel):
    """A city, and facts about it."""

    city: City
    population_millions: Annotated[int, Field(ge=0, le=50)]
    neighbours: Annotated[list[Name], Field(max_length=2)]


class Weather(BaseModel):
    """The weather in a city."""

    city: Name
    unit: Literal["celsius", "fahrenheit"]


ASK = [{"role": "user", "content": "Tell me about the capital of France."}]
RAIN = [{"role": "user", "content": "Will it rain in Paris today?"}]
WEATHER = openai.pydantic_function_tool(Weather, name="weather")
Options = dict[str, Any]


def options(**changes: Any) -> Options:
    return {"model": BASE, "messages": ASK, "max_tokens": 200, "temperature": 0} | changes


def test_a_pydantic_model_is_parsed_plain_and_streamed(buyer: Person) -> None:
    chat: Any = buyer.openai.chat.completions
    plain = chat.parse(**options(response_format=Answer)).choices[0].message
    assert plain.parsed.city.continent == "Europe"
    with chat.stream(**options(response_format=Answer)) as stream:
        streamed = stream.get_final_completion().choices[0].message
    assert (streamed.parsed, streamed.content) == (plain.parsed, plain.content)


def test_json_mode_and_n_seeded_answers(buyer: Person) -> None:
    create: Any = buyer.openai.chat.completions.create
    shape = {"type": "json_schema", "json_schema": {"name": "city", "schema": City.model_json_schema()}}
    answer = create(**options(response_format=shape, n=3, temperature=1.2, seed=4))
    again = create(**options(response_format=shape, n=3, temperature=1.2, seed=4))
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [choice.message.content for choice in again.choices]
    for text in texts:
        City.model_validate_json(text)
    talk = [{"role": "user", "content": 'Answer only with {"answer": 4} as JSON.'}]
    loose = create(**options(messages=talk, response_format={"type": "json_object"}, max_tokens=100)).choices[0]
    assert loose.message.content.startswith("{")
    if loose.finish_reason == "stop":
        json.loads(loose.message.content)


def test_a_required_tool_is_called_and_its_answer_goes_back(buyer: Person) -> None:
    chat: Any = buyer.openai.chat.completions
    asked = options(messages=RAIN, tools=[WEATHER], parallel_tool_calls=False)
    choice = chat.parse(**asked, tool_choice="required").choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, call.function.name) == ("tool_calls", None, "weather")
    assert isinstance(call.function.parsed_arguments, Weather)
    assert call.id.startswith("call_")
    result = {"role": "tool", "tool_call_id": call.id, "content": "Rain all day."}
    talk = [*RAIN, choice.message, result]
    final = chat.create(**(asked | {"messages": talk, "max_tokens": 30}), tool_choice="none").choices[0]
    assert final.message.content
    assert final.message.tool_calls is None


def test_streamed_calls_come_name_first_then_pieces(buyer: Person) -> None:
    create: Any = buyer.openai.chat.completions.create
    named = {"type": "function", "function": {"name": "weather"}}
    asked = options(messages=RAIN, tools=[WEATHER], tool_choice=named)
    (whole,) = create(**asked).choices[0].message.tool_calls
    deltas = [chunk.choices[0] for chunk in create(**asked, stream=True)]
    parts = [part for delta in deltas for part in delta.delta.tool_calls or []]
    assert (parts[0].index, parts[0].type, parts[0].function.name) == (0, "function", "weather")
    assert all(part.id is None and part.function.name is None and part.index == 0 for part in parts[1:])
    assert len(parts) > 3
    assert "".join(part.function.arguments for part in parts) == whole.function.arguments
    assert deltas[-1].finish_reason == "tool_calls"
    chat: Any = buyer.openai.chat.completions
    with chat.stream(**asked) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls[0].function.parsed_arguments == Weather.model_validate_json(whole.function.arguments)


def test_tools_left_to_the_model_give_text_or_valid_calls(buyer: Person) -> None:
    create: Any = buyer.openai.chat.completions.create
    answer = create(**options(messages=RAIN, tools=[WEATHER], n=4, temperature=0.8, seed=1, max_tokens=120))
    for choice in answer.choices:
        assert choice.message.content or choice.message.tool_calls or choice.finish_reason == "length"
        if choice.finish_reason == "tool_calls":
            for call in choice.message.tool_calls:
                jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_only_compiling_refuses_fails_alone_and_costs_nothing(buyer: Person, stream: bool) -> None:
    before = buyer.wallet()
    shape = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"type": "banana"}}}
    create: Any = buyer.openai.chat.completions.create
    with pytest.raises(openai.BadRequestError) as refused:
        create(**options(response_format=shape, stream=stream))
    assert refused.value.code == "invalid_schema"
    assert "banana" in refused.value.message
    assert buyer.wallet() == before


def test_an_echo_scores_the_prompt(buyer: Person) -> None:
    text = "The capital of France is Paris, and the capital of Italy is Rome."
    create: Any = buyer.openai.completions.create
    asked = {"model": BASE, "echo": True, "logprobs": 2, "max_tokens": 0}
    only = create(**asked, prompt=text)
    scores = only.choices[0].logprobs
    assert (only.choices[0].text, only.usage.completion_tokens) == (text, 0)
    assert "".join(scores.tokens) == text
    assert scores.token_logprobs[0] is None
    assert scores.text_offset == [sum(map(len, scores.tokens[:at])) for at in range(len(scores.tokens))]
    shuffled = create(**asked, prompt="Rome of Paris France is, capital the Italy and of capital The is.")
    assert perplexity(scores) < perplexity(shuffled.choices[0].logprobs) / 5
    longer = create(**(asked | {"max_tokens": 3}), prompt=text, temperature=0).choices[0]
    assert longer.logprobs.tokens[: len(scores.tokens)] == scores.tokens
    assert "".join(longer.logprobs.tokens) == longer.text
    streamed = [chunk.choices[0] for chunk in create(**asked, prompt=text, stream=True)]
    assert "".join(chunk.text for chunk in streamed) == text
    assert [token for chunk in streamed if chunk.logprobs for token in chunk.logprobs.tokens] == scores.tokens


def perplexity(scores: Any) -> float:
    known = scores.token_logprobs[1:]
    return math.exp(-sum(known) / len(known))
