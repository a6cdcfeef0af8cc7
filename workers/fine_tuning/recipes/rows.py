"""Rows of a training file as token ids with loss masks, ready to be packed. Imports no torch."""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from app.files.rows import Row as Example
from app.files.rows import parse_row
from app.files.rules import read_lines
from models_registry.prompt import Renderer


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


def read_examples(path: Path) -> Iterator[Example]:
    """The rows of a file that validation has passed."""
    with path.open("rb") as stream:
        for _, line in read_lines(stream):
            yield parse_row(line)


def read_rows(path: Path, renderer: Renderer, context_length: int, *, all_turns: bool = False) -> list[Row]:
    """A file of conversations or completions, every row cut to the context; rows without a target are left out."""
    rows = []
    for given in read_examples(path):
        rendered = renderer.training(given.messages, all_turns=all_turns)
        ids, mask = rendered.ids[:context_length], rendered.mask[:context_length]
        if any(mask[1:]):
            rows.append(Row(ids, mask, given.unwanted))
    return rows


def read_preferences(path: Path, renderer: Renderer, context_length: int) -> list[Row]:
    """Rows whose answers both have a token within the context."""
    rows = [preference_row(given, renderer, context_length) for given in read_examples(path)]
    return [row for row in rows if row is not None]


def preference_row(given: Example, renderer: Renderer, context_length: int) -> Row | None:
    """What both sides have in common is laid down once: up to the first target or the first difference."""
    preferred, other = (renderer.training(each) for each in given.conversations())
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
    for given in read_examples(path):
        stream.extend(text_ids(given.text, renderer))
    whole = [True] * block
    rows = [Row(stream[at : at + block], whole) for at in range(0, len(stream), block)]
    if rows and len(rows[-1].ids) < block:
        rows[-1] = Row(rows[-1].ids, whole[: len(rows[-1].ids)])
    return [row for row in rows if len(row.ids) > 1]


def text_ids(text: str, renderer: Renderer) -> list[int]:
    """A text as ordinary characters, and its end where the base has a token for it."""
    end = [] if renderer.end_of_text is None else [renderer.end_of_text]
    return renderer.encode(text) + end
