"""A chat training file as token ids with loss masks, ready to be packed."""

from pathlib import Path
from typing import Any

from app.files.rules import parse_object, read_lines
from models_registry.prompt import Message, Renderer

Row = tuple[list[int], list[bool]]


def messages_of(row: dict[str, Any]) -> list[Message]:
    """The messages of a row that validation has passed."""
    return [Message(each["role"], each["content"], int(each.get("weight", 1))) for each in row["messages"]]


def read_rows(path: Path, renderer: Renderer, context_length: int) -> list[Row]:
    """Every row cut to the context; rows without a target are left out."""
    rows = []
    with path.open("rb") as stream:
        for _, line in read_lines(stream):
            rendered = renderer.training(messages_of(parse_object(line)))
            ids, mask = rendered.ids[:context_length], rendered.mask[:context_length]
            if any(mask[1:]):
                rows.append((ids, mask))
    return rows
