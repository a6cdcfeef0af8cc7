"""A random model under a grammar: whatever the schema, the answer parses and validates; its neighbours never notice."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLParserLimits

from app.inference.tool_calls import ToolCallReader
from models_registry.prompt import Renderer
from tests.generation.constrained import TOOLS, WEATHER, grammar_for, grammar_of, grammars_of, refused_at, start
from tests.generation.tiny import Answer, ask
from tests.tiny_base import tiny_base
from workers.generation.engine.engine import TorchEngine
from workers.generation.engine.grammar import COMPILED, GrammarFailed, Grammars, InvalidGrammar

PROMPT = [1, 40, 50, 60, 70]
Scalars = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span}, st.integers(-99, 99),
              st.integers(0, 99)),
    st.builds(lambda longest: {"type": "string", "maxLength": longest}, st.integers(0, 4)),
    st.builds(lambda values: {"enum": values}, st.lists(st.text(max_size=5), min_size=1, max_size=3, unique=True)),
    st.builds(lambda value: {"const": value}, st.one_of(st.integers(-9, 9), st.text(max_size=8), st.booleans())),
)  # fmt: skip


def object_of(properties: dict[str, Any], required: int) -> dict[str, Any]:
    names = list(properties)[: len(properties) - required]
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    arrays = st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inner, st.integers(0, 1), st.integers(0, 2),
    )  # fmt: skip
    objects = st.builds(object_of, st.dictionaries(st.text(max_size=4), inner, max_size=3), st.integers(0, 3))
    return st.one_of(
        arrays, objects, st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3))
    )


Schemas = st.recursive(Scalars, nested, max_leaves=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("constrained"))


@pytest.fixture(scope="module")
def renderer(folder: Path) -> Renderer:
    return Renderer.load(folder)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TorchEngine]:
    engine = start(folder)
    yield engine
    engine.close()


def told(answer: Answer, choice: int = 0) -> Any:
    """The parsed answer, which ended because it was complete."""
    answer.wait()
    assert answer.finish(choice) == "stop", answer.text(choice)
    return json.loads(answer.text(choice))


@settings(max_examples=40, deadline=None)
@given(schema=Schemas, seed=st.integers(0, 2**32), temperature=st.sampled_from([0.0, 0.7, 2.0]))
def test_whatever_the_schema_the_answer_validates(
    engine: TorchEngine, schema: dict[str, Any], seed: int, temperature: float
) -> None:
    options: dict[str, Any] = {
        "grammar": grammar_of(schema),
        "seed": seed,
        "temperature": temperature,
        "max_tokens": 480,
        "n": 2,
    }
    answer = ask(engine, PROMPT, **options)
    for choice in range(2):
        jsonschema.validate(told(answer, choice), schema)


def test_a_schema_that_refers_to_itself_is_followed(engine: TorchEngine) -> None:
    tree = {
        "$defs": {"node": {
            "type": "object",
            "properties": {"value": {"type": "boolean"},
                           "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1}},
            "required": ["value", "children"], "additionalProperties": False,
        }},
        "$ref": "#/$defs/node",
    }  # fmt: skip
    answers = [
        ask(engine, PROMPT, grammar=grammar_of(tree), temperature=1.0, seed=seed, max_tokens=300) for seed in range(8)
    ]
    ended = [answer for answer in answers if answer.wait().finish() == "stop"]
    assert ended
    for answer in ended:
        jsonschema.validate(told(answer), tree)


def test_any_object_is_an_object_or_was_cut(engine: TorchEngine) -> None:
    grammar = grammar_for(response_format={"type": "json_object"})
    answers = [ask(engine, PROMPT, grammar=grammar, temperature=1.5, seed=seed, max_tokens=200) for seed in range(8)]
    for answer in answers:
        assert answer.wait().text().startswith("{")
        if answer.finish() == "stop":
            assert isinstance(json.loads(answer.text()), dict)


def test_characters_of_many_tokens_come_whole(engine: TorchEngine) -> None:
    words = ["naïve café", "日本語テキスト", "🎈👩‍🚀", 'quote " and \\ slash', "<|im_end|>", "\u2028 line"]
    schema = {"type": "array", "prefixItems": [{"const": word} for word in words], "items": False, "minItems": 6}
    answer = ask(engine, PROMPT, grammar=grammar_of(schema), max_tokens=300)
    assert told(answer) == words
    assert not any("\ufffd" in event.text for event in answer.events)


def test_the_end_comes_with_the_last_token_not_after_it(engine: TorchEngine, renderer: Renderer) -> None:
    answer = ask(engine, PROMPT, grammar=grammar_of({"const": "done"}))
    assert told(answer) == "done"
    assert renderer.decode(answer.ids()) == '"done"'
    assert not set(answer.ids()) & renderer.eos_ids


def test_an_end_of_sequence_waits_until_the_grammar_accepts(engine: TorchEngine, renderer: Renderer) -> None:
    eager = {token: 100.0 for token in renderer.eos_ids}
    schema = {"type": "integer", "minimum": 100}
    answer = ask(engine, PROMPT, grammar=grammar_of(schema), logit_bias=eager)
    assert told(answer) >= 100
    assert answer.ids()[-1] in renderer.eos_ids
    assert len(answer.text()) == 3


def test_without_ends_a_number_runs_to_its_length(engine: TorchEngine, renderer: Renderer) -> None:
    never = {token: -100.0 for token in renderer.eos_ids}
    answer = ask(engine, PROMPT, grammar=grammar_of({"type": "integer"}), logit_bias=never, max_tokens=9).wait()
    assert (answer.finish(), len(answer.ids())) == ("length", 9)
    assert re.fullmatch(r"-?\d+", answer.text())


def test_a_seed_repeats_and_choices_differ(engine: TorchEngine) -> None:
    options: dict[str, Any] = {"grammar": grammar_of(WEATHER), "temperature": 1.5, "seed": 7, "n": 4, "max_tokens": 200}
    first, second = ask(engine, PROMPT, **options).wait(), ask(engine, PROMPT, **options).wait()
    texts = [first.text(choice) for choice in range(4)]
    assert texts == [second.text(choice) for choice in range(4)]
    assert len(set(texts)) > 1


def test_a_stop_string_still_stops(engine: TorchEngine) -> None:
    answer = ask(engine, PROMPT, grammar=grammar_of(WEATHER), stop=['", "days"'], max_tokens=200).wait()
    assert answer.finish() == "stop"
    assert answer.text().startswith('{"city": "')
    assert "days" not in answer.text()


def test_a_mixed_batch_changes_nobody(engine: TorchEngine) -> None:
    jobs: list[dict[str, Any]] = []
    for number in range(12):
        grammar = grammar_of(WEATHER) if number % 3 == 0 else None
        jobs.append({"grammar": grammar, "temperature": number % 2, "seed": number, "logprobs": 2, "max_tokens": 60})
    alone = [ask(engine, [1, 30 + i, 40], **job).wait() for i, job in enumerate(jobs)]
    together = [ask(engine, [1, 30 + i, 40], **job) for i, job in enumerate(jobs)]
    assert [answer.wait().ids() for answer in together] == [answer.ids() for answer in alone]
    for number in range(0, 12, 3):
        jsonschema.validate(told(together[number]), WEATHER)


def test_logprobs_are_the_models_own_under_a_grammar(engine: TorchEngine) -> None:
    forced = ask(engine, PROMPT, grammar=grammar_of({"const": "x"}), logprobs=3).wait()
    free = ask(engine, PROMPT, logprobs=3, max_tokens=1).wait()
    (own,), (other,) = forced.events[0].logprobs, free.events[0].logprobs
    assert [token for token, _ in own.top] == [token for token, _ in other.top]
    assert own.logprob < own.top[0][1]


def test_preemption_keeps_the_place_in_the_grammar(folder: Path, engine: TorchEngine) -> None:
    options: dict[str, Any] = {"grammar": grammar_of(WEATHER), "temperature": 1.0, "max_tokens": 120}
    expected = [ask(engine, PROMPT, seed=seed, **options).wait().ids() for seed in range(12)]
    cramped = start(folder, kv_cache_tokens=256, max_batch_tokens=16, max_batch=12)
    answers = [ask(cramped, PROMPT, seed=seed, **options) for seed in range(12)]
    assert [answer.wait().ids() for answer in answers] == expected
    assert cramped.stats().preemptions > 0
    cramped.close()
    for answer in answers:
        jsonschema.validate(told(answer), WEATHER)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "banana"},
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "#"},
        {"type": "array", "uniqueItems": True},
        {"type": "string", "pattern": "("},
        {"type": "string", "format": "telepathy"},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "integer", "multipleOf": 999999937, "minimum": 1, "maximum": 10**15},
    ],
)
def test_a_bad_schema_fails_its_own_request_only(engine: TorchEngine, schema: dict[str, Any]) -> None:
    beside = ask(engine, PROMPT, max_tokens=40)
    with pytest.raises(InvalidGrammar):
        ask(engine, PROMPT, grammar=grammar_of(schema))
    assert beside.wait().finish() in ("stop", "length")


def test_a_schema_that_proves_too_costly_ends_its_own_request_only(folder: Path, engine: TorchEngine) -> None:
    expected = ask(engine, PROMPT, max_tokens=60).wait().ids()
    frugal = start(folder, LLParserLimits(step_lexer_fuel=300))
    pattern = grammar_of({"type": "string", "pattern": "^(.*[a-z].{200}b|.*[0-9].{300}d)$"})
    costly = ask(frugal, PROMPT, grammar=pattern, temperature=1.0, seed=1, max_tokens=400, n=2)
    beside = ask(frugal, PROMPT, max_tokens=60)
    assert costly.handle.wait(60)
    assert isinstance(costly.handle.error, GrammarFailed)
    assert beside.wait().ids() == expected
    assert frugal.stats().running == frugal.stats().blocks_used == 0
    frugal.close()


def test_a_loose_schema_takes_unknown_keywords_as_advice(engine: TorchEngine) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "maxItems": 2}
    loose = grammar_for(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert isinstance(told(ask(engine, PROMPT, grammar=loose)), list)


def test_compiled_grammars_are_shared_and_bounded(renderer: Renderer) -> None:
    grammars = grammars_of(renderer)
    first = grammars.compile(grammar_of({"const": 0}))
    assert grammars.compile(grammar_of({"const": 0})) is first
    for number in range(1, COMPILED + 5):
        grammars.compile(grammar_of({"const": number}))
    assert len(grammars) == COMPILED
    assert grammars.compile(grammar_of({"const": 0})) is not first


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


def test_an_unknown_kind_of_tokenizer_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        Grammars("{}", [0])
