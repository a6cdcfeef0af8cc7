"""What admission makes of `response_format`, `tools` and messages about them; what it refuses before a hold."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import func, select
from starlette.testclient import TestClient

from app.billing.tables import Generation
from app.database import transaction
from app.errors import InvalidSchema, InvalidValue, UnsupportedContent
from app.inference import rules
from app.inference.schema_limits import MAX_BYTES, MAX_DEPTH, MAX_ENUM_VALUES, MAX_PROPERTIES
from app.inference.schemas import MAX_TOOLS, ChatMessage, ChatRequest
from app.inference.structure import Structure, structure_of
from models_registry.prompt import Message
from tests.conftest import Base, Signed

Body = dict[str, Any]


def request(**body: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}]} | body)


def shape(schema: Any, **more: Any) -> Body:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema} | more}


def tool(name: str = "look", **function: Any) -> Body:
    return {"type": "function", "function": {"name": name} | function}


def deep(levels: int) -> Body:
    schema: Body = {}
    for _ in range(levels - 1):
        schema = {"not": schema}
    return schema


REFUSED_SCHEMAS: list[Any] = [
    [],
    True,
    "object",
    deep(MAX_DEPTH + 1),
    {"$ref": "https://example.com/schema.json"},
    {"properties": {"a": {"items": [{"$ref": "other.json#/a"}]}}},
    {"$dynamicRef": "file:///etc/passwd"},
    {"enum": list(range(MAX_ENUM_VALUES + 1))},
    {"properties": {f"p{number}": {} for number in range(MAX_PROPERTIES + 1)}},
    {"description": "é" * (MAX_BYTES // 2)},
]


@pytest.mark.parametrize("schema", REFUSED_SCHEMAS)
def test_a_schema_out_of_bounds_is_refused_wherever_it_stands(schema: Any) -> None:
    with pytest.raises(InvalidSchema):
        structure_of(request(response_format=shape(schema)))
    with pytest.raises(InvalidSchema):
        structure_of(request(tools=[tool(), tool("other", parameters=schema)]))


def test_bounds_are_inclusive_and_own_parts_may_be_referred_to() -> None:
    structure_of(request(response_format=shape(deep(MAX_DEPTH))))
    structure_of(request(response_format=shape({"enum": list(range(MAX_ENUM_VALUES))})))
    structure_of(request(response_format=shape({"$defs": {"a": {}}, "properties": {"$ref": {"$ref": "#/$defs/a"}}})))


def test_all_schemas_of_a_request_share_one_bound() -> None:
    half = {"description": "x" * (MAX_BYTES // 2)}
    structure_of(request(tools=[tool(parameters=half)]))
    with pytest.raises(InvalidSchema):
        structure_of(request(tools=[tool("a", parameters=half), tool("b", parameters=half)]))
    with pytest.raises(InvalidSchema):
        structure_of(request(tools=[tool(parameters=half)], response_format=shape(half)))


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [tool(), tool()]},
        {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tool_choice": "required"},
        {"response_format": {"type": "json_schema"}},
    ],
)
def test_tools_that_contradict_each_other_are_refused(body: Body) -> None:
    with pytest.raises(InvalidValue):
        structure_of(request(**body))


def test_parameters_describe_an_object() -> None:
    with pytest.raises(InvalidSchema):
        structure_of(request(tools=[tool(parameters={"type": "string"})]))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UnsupportedContent):
        structure_of(request(response_format={"type": "yaml"}))


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [tool(str(number)) for number in range(MAX_TOOLS + 1)]},
        {"tools": [tool('x", "arguments": ')]},
        {"tools": [{"type": "custom", "custom": {"name": "x"}}]},
        {"tool_choice": "always"},
        {"response_format": shape({}, name="no spaces")},
    ],
)
def test_what_is_no_tool_is_refused(body: Body) -> None:
    with pytest.raises(ValidationError):
        request(**body)


@pytest.mark.parametrize("body", [{}, {"response_format": {"type": "text"}}, {"tools": []}, {"tool_choice": "none"}])
def test_a_free_answer_has_no_structure(body: Body) -> None:
    assert structure_of(request(**body)) == Structure()


def test_no_tool_may_be_called_when_none_is_chosen() -> None:
    assert structure_of(request(tools=[tool()], tool_choice="none")) == Structure()


def test_the_model_reads_what_it_may_call_and_what_is_expected() -> None:
    named = {"type": "function", "function": {"name": "b"}}
    both = structure_of(request(tools=[tool("a", description="Adds."), tool("b")], response_format=shape({"const": 7})))
    only = structure_of(request(tools=[tool("a"), tool("b")], tool_choice=named))
    assert '{"name": "a", "description": "Adds."' in both.words
    assert '{"const": 7}' in both.words
    assert '"name": "a"' not in only.words
    assert structure_of(request(response_format={"type": "json_object"})).words == ""


def test_a_callers_own_library_options_are_replaced() -> None:
    mine = {"x-guidance": {"whitespace_flexible": True, "lenient": True}, "type": "object"}
    grammar = structure_of(request(response_format=shape(mine, strict=True))).grammar or ""
    options = json.loads(grammar.partition("%json ")[2])["x-guidance"]
    assert (options["lenient"], options["whitespace_flexible"]) == (False, False)


def talk(*messages: Body) -> list[ChatMessage]:
    return [ChatMessage.model_validate(each) for each in messages]


def call(arguments: str = '{"city": "Rome"}', **message: Any) -> Body:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": function}]} | message


def test_calls_and_their_results_are_rendered_as_the_model_was_told() -> None:
    result = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    turns = rules.conversation(talk({"role": "user", "content": "?"}, call(), result, result), "Be brief.", "Tools: …")
    assert turns == [
        Message("system", "Be brief.\n\nTools: …"),
        Message("user", "?"),
        Message("assistant", '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'),
        Message("user", "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nsunny\n</tool_response>"),
    ]


def test_words_alone_make_a_system_turn_and_text_may_precede_a_call() -> None:
    turns = rules.conversation(talk(call(content="Let me see.")), None, "Tools: …")
    assert turns[0] == Message("system", "Tools: …")
    assert turns[1].content.startswith("Let me see.\n<tool_call>\n")


@pytest.mark.parametrize(
    "message",
    [{"role": "tool", "content": "x"}, call(role="user"), {"role": "tool", "tool_call_id": "1"}, {"role": "function"}],
)
def test_messages_about_tools_must_make_sense(message: Body) -> None:
    with pytest.raises(InvalidValue):
        rules.conversation(talk(message), None)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"response_format": shape([])}, "invalid_schema"),
        ({"response_format": shape({"$ref": "http://127.0.0.1/"})}, "invalid_schema"),
        ({"tools": [tool(parameters=deep(MAX_DEPTH + 1))]}, "invalid_schema"),
        ({"tool_choice": "required"}, "invalid_value"),
        ({"tools": [tool("a b")]}, "invalid_value"),
        ({"tools": [tool() | {"extra": 1}]}, "unknown_parameter"),
    ],
)
def test_a_refusal_holds_nothing(
    client: TestClient, base: Base, signed_up: Callable[..., Signed], body: Body, code: str
) -> None:
    caller = signed_up("caller")
    whole = {"model": base.id, "messages": [{"role": "user", "content": "x"}]} | body
    answer = client.post("/v1/chat/completions", headers=caller.headers, json=whole)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
    with transaction() as tx:
        calls = select(func.count()).select_from(Generation).where(Generation.account_id == caller.account_id)
        assert tx.scalar(calls) == 0


def test_no_tokens_without_an_echo_is_refused(client: TestClient, base: Base, signed_up: Callable[..., Signed]) -> None:
    body = {"model": base.id, "prompt": "x", "max_tokens": 0}
    answer = client.post("/v1/completions", headers=signed_up("caller").headers, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens"), answer.text
