"""A tiny random model with a real byte-level tokenizer, and the grammars that admission would write for it."""

import json
from pathlib import Path
from typing import Any

from llguidance import LLParserLimits

from app.inference.schemas import ChatRequest
from app.inference.structure import structure_of
from models_registry.prompt import Detokenizer, Renderer
from tests.generation.tiny import Answer
from workers.generation.engine.engine import EngineOptions, TorchEngine
from workers.generation.engine.grammar import LIMITS, Grammar, Grammars

PROMPT = [1, 40, 50, 60, 70]
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}},
    {"type": "function", "function": {"name": "now"}},
]


def grammar_for(**body: Any) -> str:
    """As admission writes it."""
    request = ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}]} | body)
    grammar = structure_of(request).grammar
    assert grammar is not None
    return grammar


def grammar_of(schema: dict[str, Any]) -> str:
    shape = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    return grammar_for(response_format=shape)


def grammars_of(renderer: Renderer, limits: LLParserLimits = LIMITS) -> Grammars:
    return Grammars(renderer.tokenizer.to_str(), renderer.eos_ids, limits)


def start(folder: Path, limits: LLParserLimits = LIMITS, **changes: int) -> TorchEngine:
    renderer = Renderer.load(folder)
    options: dict[str, Any] = {"dtype": "fp32", "kv_cache_tokens": 4096, "max_batch_tokens": 64}
    return TorchEngine(
        folder,
        detokenizer=lambda: Detokenizer(renderer),
        eos_ids=renderer.eos_ids,
        options=EngineOptions(**(options | changes)),
        grammars=grammars_of(renderer, limits),
    )


def refused_at(grammar: Grammar, renderer: Renderer, text: str) -> str | None:
    """The rest of `text` from the first token that the grammar refuses; None when it takes all."""
    matcher, ids = grammar.matcher(), renderer.encode(text)
    for at, token in enumerate(ids):
        if not matcher.advance(token):
            return renderer.decode(ids[at:])
    return None


def told(answer: Answer, choice: int = 0) -> Any:
    """The parsed answer, which ended because it was complete."""
    answer.wait()
    assert answer.finish(choice) == "stop", answer.text(choice)
    return json.loads(answer.text(choice))
