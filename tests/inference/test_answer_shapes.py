"""Tool calls and prompt scores in OpenAI's shapes, however the text was cut into events."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inference.admission import Admitted
from app.inference.answers import ChatShape, Collected, TextShape
from app.inference.tool_calls import ToolCallReader
from app.inference.wire_events import GenerateTask, SamplingParams, TokenEvent, TokenLogprob
from models_registry.tool_text import call_text

FIRST, SECOND = '{"city": "Rome", "note": "a } b </tool_call> {}"}', '{"nested": {"deep": {}}}'
SPOKEN = "Let me look <tool> first.\n"
TEXT = f"{SPOKEN}{call_text('weather', FIRST)}\n{call_text('now', SECOND)}"
Pieces = st.lists(st.integers(0, len(TEXT)), max_size=30)


def admitted(calls: bool = False, **params: Any) -> Admitted:
    task = GenerateTask(
        generation_id="chatcmpl-1",
        attempt=1,
        replica="r",
        base_id="b",
        base_digest="d" * 64,
        tenant="acct-1",
        adapter_digest=None,
        token_ids=[5, 6, 7],
        params=SamplingParams.model_validate({"max_tokens": 9} | params),
        deadline=0,
    )
    return Admitted(task, "m", 0, prompt="abc", first="a", calls=calls)


def events(text: str, cuts: list[int], finish: Any = "stop") -> list[TokenEvent]:
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[begin:end] for begin, end in itertools.pairwise(places)]
    told = [TokenEvent(g="g", a=1, text=piece, ids=[1]) for piece in pieces]
    return [*told[:-1], told[-1].model_copy(update={"finish": finish})]


@given(cuts=Pieces)
def test_streamed_calls_add_up_to_the_plain_ones(cuts: list[int]) -> None:
    shape, content, calls, finish = ChatShape(admitted(calls=True)), "", list[Any](), None
    for event in events(TEXT, cuts):
        piece = shape.piece(event)
        (choice,) = piece["choices"] if piece else ({"delta": {}, "finish_reason": None},)
        content += choice["delta"].get("content", "")
        for part in choice["delta"].get("tool_calls", []):
            if "id" in part:
                assert part["index"] == len(calls)
                calls.append({"type": part["type"], "function": dict(part["function"])})
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
        finish = choice["finish_reason"]
    collected = Collected({})
    for event in events(TEXT, cuts):
        collected.take(event)
    (whole,) = ChatShape(admitted(calls=True)).whole(collected)["choices"]
    ids = [call.pop("id") for call in whole["message"]["tool_calls"]]
    assert (content, calls, finish) == (whole["message"]["content"], whole["message"]["tool_calls"], "tool_calls")
    assert content == SPOKEN
    assert [call["function"]["arguments"] for call in calls] == [FIRST, SECOND]
    assert len(set(ids)) == 2


def test_an_argument_leaves_as_soon_as_it_is_certain() -> None:
    reader = ToolCallReader()
    assert reader.push('<tool_call>\n{"name": "f", "arguments": {"a"').calls[0].arguments == '{"a"'
    assert reader.push(": 1").calls[0].arguments == ": 1"
    assert reader.push("}").calls == []
    assert reader.push(", ").calls[0].arguments == "}, "


@pytest.mark.parametrize("text", ["", "plain", "almost <tool_cal", "<", "a <tool_call"])
def test_text_without_a_call_is_all_content(text: str) -> None:
    gain = ToolCallReader().push(text, last=True)
    assert (gain.content, gain.calls) == (text, [])


def test_a_call_that_was_cut_is_told_as_far_as_it_came() -> None:
    collected = Collected({})
    for event in events(call_text("f", '{"a": {"b": 1}}')[:-14], [9], finish="length"):
        collected.take(event)
    (choice,) = ChatShape(admitted(calls=True)).whole(collected)["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": {"b": 1}}'}


def test_markers_are_plain_text_where_no_tool_was_offered() -> None:
    collected = Collected({})
    for event in events(TEXT, [3]):
        collected.take(event)
    (choice,) = ChatShape(admitted()).whole(collected)["choices"]
    assert choice["message"]["content"] == TEXT
    assert "tool_calls" not in choice["message"]
    assert json.dumps(choice)


def scored(token: int, text: str) -> TokenLogprob:
    return TokenLogprob(id=token, text=text, logprob=-float(token))


def test_an_echoed_prompts_scores_lead_and_its_first_token_has_none() -> None:
    collected = Collected({})
    parts = [
        TokenEvent(g="g", a=1, plp=[scored(6, "b")]),
        TokenEvent(g="g", a=1, plp=[scored(7, "c")]),
        TokenEvent(g="g", a=1, text="de", ids=[8], lp=[scored(8, "de")], finish="length"),
    ]
    for part in parts:
        collected.take(part)
    (choice,) = TextShape(admitted(prompt_logprobs=0, logprobs=0)).whole(collected)["choices"]
    assert choice["text"] == "abcde"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c", "de"]
    assert choice["logprobs"]["token_logprobs"] == [None, -6, -7, -8]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3]
    assert choice["logprobs"]["top_logprobs"][0] is None
    streaming = TextShape(admitted(prompt_logprobs=0, logprobs=0))
    pieces = [streaming.piece(part) for part in parts]
    tokens = [token for piece in pieces if piece for token in piece["choices"][0]["logprobs"]["tokens"]]
    offsets = [at for piece in pieces if piece for at in piece["choices"][0]["logprobs"]["text_offset"]]
    assert (tokens, offsets) == (choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"])
