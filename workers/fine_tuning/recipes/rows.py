"""Rows of a training file as token ids with loss masks, ready to be packed. Imports no torch."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from app.files.rules import parse_object, read_lines
from models_registry.prompt import Message, Renderer


class Row(NamedTuple):
    """One sequence. `mask[i]`: token i is a target. `unwanted`: the targets are to become unlikely.

    A preference is one row too: prompt, preferred and other answer end to end; `fork` is (prompt, preferred) in tokens.
    `reference`: summed log-probabilities of the two answers under the model as training began.
    """

    ids: Sequence[int]
    mask: Sequence[bool]
    unwanted: bool = False
    fork: tuple[int, int] | None = None
    reference: tuple[float, float] | None = None


def messages_of(given: Sequence[dict[str, Any]]) -> list[Message]:
    """Messages that validation has passed."""
    return [Message(each["role"], each["content"], int(each.get("weight", 1))) for each in given]


def read_objects(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as stream:
        for _, line in read_lines(stream):
            yield parse_object(line)


def read_rows(path: Path, renderer: Renderer, context_length: int, *, all_turns: bool = False) -> list[Row]:
    """A chat file, every row cut to the context; rows without a target are left out."""
    rows = []
    for given in read_objects(path):
        rendered = renderer.training(messages_of(given["messages"]), all_turns=all_turns)
        ids, mask = rendered.ids[:context_length], rendered.mask[:context_length]
        if any(mask[1:]):
            rows.append(Row(ids, mask, given.get("unwanted") is True))
    return rows


def read_preferences(path: Path, renderer: Renderer, context_length: int) -> list[Row]:
    """Rows whose answers both have a token within the context."""
    rows = [preference_row(given, renderer, context_length) for given in read_objects(path)]
    return [row for row in rows if row is not None]


def preference_row(given: dict[str, Any], renderer: Renderer, context_length: int) -> Row | None:
    """What both sides have in common is laid down once: up to the first target or the first difference."""
    prompt = [replace(message, weight=0) for message in messages_of(given["input"]["messages"])]
    preferred = renderer.training(prompt + messages_of(given["preferred_output"]))
    other = renderer.training(prompt + messages_of(given["non_preferred_output"]))
    shared = 0
    for left, right, *targets in zip(preferred.ids, other.ids, preferred.mask, other.mask, strict=False):
        if left != right or any(targets):
            break
        shared += 1
    ends = [min(len(side.ids), context_length) for side in (preferred, other)]
    sides = [side.mask[shared:end] for side, end in zip((preferred, other), ends, strict=True)]
    if not shared or not all(any(side) for side in sides):
        return None
    ids = preferred.ids[: ends[0]] + other.ids[shared : ends[1]]
    return Row(ids, [False] * shared + sides[0] + sides[1], fork=(shared, len(sides[0])))


def read_texts(path: Path, renderer: Renderer, block: int) -> list[Row]:
    """Raw texts end to end, each closed by the end-of-text token, cut into blocks of `block` tokens."""
    stream = array("i")
    for given in read_objects(path):
        stream.extend(text_ids(given["text"], renderer))
    whole = [True] * block
    rows = [Row(stream[at : at + block], whole) for at in range(0, len(stream), block)]
    if rows and len(rows[-1].ids) < block:
        rows[-1] = Row(rows[-1].ids, whole[: len(rows[-1].ids)])
    return [row for row in rows if len(row.ids) > 1]


def text_ids(text: str, renderer: Renderer) -> list[int]:
    """A text as ordinary characters, and its end where the base has a token for it."""
    end = [] if renderer.end_of_text is None else [renderer.end_of_text]
    return renderer.encode(text) + end
