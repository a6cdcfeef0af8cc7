"""A random model under a grammar: whatever the schema, the answer parses and validates; its neighbours never notice."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import given, settings
from hypothesis import strategies as st

from models_registry.prompt import Renderer
from tests.generation.constrained import PROMPT, WEATHER, grammar_for, grammar_of, start, told
from tests.generation.tiny import ask
from workers.generation.engine.engine import TorchEngine

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
