"""Schemas that cannot be followed, cost too much or say too much; and what compiling them keeps."""

from pathlib import Path
from typing import Any

import pytest
from llguidance import LLParserLimits

from models_registry.prompt import Renderer
from tests.generation.constrained import PROMPT, grammar_for, grammar_of, grammars_of, start, told
from tests.generation.tiny import ask
from workers.generation.engine.engine import TorchEngine
from workers.generation.engine.grammar import COMPILED, GrammarFailed, Grammars, InvalidGrammar


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


def test_an_unknown_kind_of_tokenizer_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        Grammars("{}", [0])
