"""A random model that may, must or may not call: what it says is a call that fits, or none."""

import json
from typing import Any

import jsonschema
import pytest

from app.inference.tool_calls import ToolCallReader
from models_registry.prompt import Renderer
from tests.generation.constrained import (
    PROMPT,
    TOOLS,
    WEATHER,
    grammar_for,
    grammars_of,
    refused_at,
)
from tests.generation.tiny import ask
from workers.generation.engine.engine import TorchEngine


@pytest.mark.parametrize(("name", "arguments"), [("weather", WEATHER), ("now", {"maxProperties": 0})])
def test_a_required_call_is_always_a_call(
    engine: TorchEngine, renderer: Renderer, name: str, arguments: dict[str, Any]
) -> None:
    grammar, liked = grammar_for(tools=TOOLS, tool_choice="required"), {renderer.encode(name[0])[0]: 50.0}
    for seed in range(6):
        options: dict[str, Any] = {"temperature": 1.0, "seed": seed, "max_tokens": 400, "logit_bias": liked}
        answer = ask(engine, PROMPT, grammar=grammar, **options).wait()
        calls = ToolCallReader().push(answer.text(), last=True).calls
        assert calls[0].name == name
        for call in calls[: len(calls) - (answer.finish() == "length")]:
            if call.name == name:
                jsonschema.validate(json.loads(call.arguments), arguments)


def test_a_named_function_is_called_once(engine: TorchEngine) -> None:
    grammar = grammar_for(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}})
    answer = ask(engine, PROMPT, grammar=grammar, temperature=1.0, seed=3, max_tokens=300).wait()
    (call,) = ToolCallReader().push(answer.text(), last=True).calls
    assert call.name == "weather"
    jsonschema.validate(json.loads(call.arguments), WEATHER)
    assert answer.finish() == "stop"


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("No call at all, a < b <tool", None),
        (CALL, None),
        (f"Let me look.\n{CALL}\n{CALL}", None),
        ("Well <tool_call>\n{\"name\": \"cook", "cook"),
        ('<tool_call>\n{"name": "weather", "arguments": {"days', "days"),
        (f"{CALL} and then", " and then"),
    ],
)  # fmt: skip
def test_auto_is_free_until_a_call_begins(renderer: Renderer, text: str, refused: str | None) -> None:
    grammar = grammars_of(renderer).compile(grammar_for(tools=TOOLS))
    rest = refused_at(grammar, renderer, text)
    assert rest == refused or (rest is not None and refused is not None and rest.endswith(refused))


def test_one_call_only_where_parallel_calls_are_off(renderer: Renderer) -> None:
    grammar = grammars_of(renderer).compile(grammar_for(tools=TOOLS, parallel_tool_calls=False))
    assert refused_at(grammar, renderer, CALL) is None
    assert refused_at(grammar, renderer, f"{CALL}\n{CALL}") is not None


def test_an_answers_schema_and_calls_go_together(renderer: Renderer) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "yes"}}}
    grammar = grammars_of(renderer).compile(grammar_for(tools=TOOLS, response_format=shape))
    assert refused_at(grammar, renderer, '"yes"') is None
    assert refused_at(grammar, renderer, CALL) is None
    assert refused_at(grammar, renderer, "no") is not None
