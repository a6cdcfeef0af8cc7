"""Every kind of row is taken as it is meant, and every bad one is named by its line."""

import json

import pytest

from app.files.rows import BadRow, Kind, parse_row
from tests.datasets.conftest import Owner, chat, jsonl

ASKED = {"messages": [{"role": "user", "content": "Which is better?"}]}


def said(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


PREFERENCE = {"input": ASKED, "preferred_output": said("This one."), "non_preferred_output": said("That one.")}


@pytest.mark.parametrize(
    ("rows", "kind", "conversations"),
    [
        ([chat("Hi", "Hello"), chat("Go away", "Never", unwanted=True)], "chat", 1),
        ([{"prompt": "2+2?", "completion": "4"}], "completion", 1),
        ([PREFERENCE], "preference", 2),
        ([{"text": "Once upon a time."}, {"text": "The end."}], "text", 0),
    ],
)
def test_a_file_of_each_kind_is_counted_as_its_kind(
    owner: Owner, rows: list[object], kind: str, conversations: int
) -> None:
    report = owner.validated(jsonl(*rows))
    assert (report["status"], report["kind"], report["rows"]) == ("processed", kind, len(rows))
    assert report["problems"] == []
    assert 0 < report["trained_tokens"] <= report["tokens"]
    assert report["unwanted"] == (kind == "chat")
    assert report["tokens_percentiles"]["99"] == report["tokens_max"]
    assert len(parse_row(json.dumps(rows[0]).encode()).conversations()) == conversations


def test_a_preference_beyond_the_context_is_left_out_and_its_file_is_still_good(owner: Owner) -> None:
    short = owner.validated(jsonl(PREFERENCE))
    asked = {"messages": [{"role": "user", "content": "which? " * 10_000}]}
    report = owner.validated(jsonl(PREFERENCE, PREFERENCE | {"input": asked}))
    assert (report["status"], report["over_context"]) == ("processed", 1)
    assert "left out" in report["problems"][0]["message"]
    assert report["tokens"] == short["tokens"]


def test_a_weight_of_zero_keeps_a_turn_out_of_what_is_learned(owner: Owner) -> None:
    turns = chat("One?", "The first answer.")["messages"] + chat("Two?", "The second answer.")["messages"]
    both = owner.validated(jsonl({"messages": turns}))
    turns[1]["weight"] = 0
    one = owner.validated(jsonl({"messages": turns}))
    assert one["tokens"] == both["tokens"]
    assert 0 < one["trained_tokens"] < both["trained_tokens"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"messages": [{"role": "assistant", "content": "\\ud800"}]}', "lone_surrogate"),
        (b'{"text": "a", "score": NaN}', "invalid_json"),
        (b'{"text": "a", "text": "b"}', "invalid_json"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"text": ' + b"[" * 100_000, "invalid_json"),
        (b'{"text": "\xff"}', "invalid_json"),
        (b'{"text": "a\x00b"}', "invalid_json"),
        (b'"text"', "not_an_object"),
        (b"{}", "unknown_fields"),
        (b'{"text": 7}', "empty_content"),
        (b'{"text": "a", "unwanted": "yes"}', "invalid_unwanted"),
        (b'{"text": "a", "unwanted": true}', "invalid_unwanted"),
        (b'{"prompt": "a", "completion": " "}', "empty_content"),
        (b'{"messages": {"role": "user"}}', "missing_messages"),
        (b'{"messages": [{"role": ["user"], "content": "x"}]}', "unknown_role"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "no_assistant_message"),
        (b'{"messages": [{"role": "assistant", "content": "x", "weight": 0}]}', "no_assistant_message"),
        (b'{"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}', "invalid_weight"),
        (json.dumps(PREFERENCE | {"input": []}).encode(), "missing_messages"),
        (json.dumps(PREFERENCE | {"preferred_output": []}).encode(), "missing_messages"),
        (json.dumps(PREFERENCE | {"preferred_output": ASKED["messages"]}).encode(), "unknown_role"),
        (json.dumps(PREFERENCE | {"unwanted": True}).encode(), "invalid_unwanted"),
    ],
)
def test_a_bad_row_is_named(line: bytes, code: str) -> None:
    with pytest.raises(BadRow) as refused:
        parse_row(line)
    assert refused.value.code == code


def test_rows_of_two_kinds_are_no_file(owner: Owner) -> None:
    error = owner.upload(jsonl({"text": "a"}, chat("b", "c")))
    assert error["code"] == "invalid_training_file"
    assert "line 2" in error["message"]


def test_control_characters_are_a_warning_and_roles_are_counted(owner: Owner) -> None:
    report = owner.validated(jsonl(chat("bell \u0007", "no\u0000thing"), chat("fine\n\ttext", "yes")))
    assert [(each["line"], each["code"]) for each in report["problems"]] == [(1, "control_characters")]
    assert (report["status"], report["roles"]) == ("processed", {"user": 2, "assistant": 2})


def test_the_answer_and_the_question_of_a_preference_are_told_apart() -> None:
    row = parse_row(json.dumps(PREFERENCE).encode())
    assert (row.kind, row.question(), row.answer()) == (Kind.PREFERENCE, "Which is better?", "This one.")
