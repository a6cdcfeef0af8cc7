"""Which columns of a table make which rows. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# First match wins. The names are those that public data sets use (OpenAI's, TRL's, Alpaca's, SQuAD's).
LAYOUTS = (
    ("messages",),
    ("prompt", "chosen", "rejected"),
    ("input", "preferred_output", "non_preferred_output"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("question", "answer"),
    ("text",),
)
OPTIONAL = {"instruction": ("input", "system"), "question": ("system",), "prompt": ("system",)}
TRUE, FALSE = frozenset({"true", "1", "yes"}), frozenset({"", "false", "0", "no"})


@dataclass(frozen=True)
class Layout:
    """`needed` columns decide what a row is; `optional` ones add to it; `ignored` ones are left out."""

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def used(self) -> list[str]:
        return [*self.needed, *self.optional]


def layout_of(columns: Sequence[str]) -> Layout:
    """Raises ValueError when no row can be made of these."""
    if len(set(columns)) != len(columns):
        raise ValueError("two columns have the same name")
    for needed in LAYOUTS:
        if all(name in columns for name in needed):
            wanted = (*OPTIONAL.get(needed[0], ()), "unwanted")
            optional = tuple(name for name in wanted if name in columns and name not in needed)
            ignored = tuple(name for name in columns if name not in needed and name not in optional)
            return Layout(needed, optional, ignored)
    known = "; ".join(", ".join(layout) for layout in LAYOUTS)
    raise ValueError(f"the columns make no rows; name them as one of: {known}")


def row_of(layout: Layout, cells: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object of one table row; what is wrong inside is for validation to say. Raises ValueError."""
    extra = {"unwanted": True} if is_true(cells.get("unwanted")) else {}
    match layout.needed:
        case ("text",):
            return {"text": plain(cells["text"])} | extra
        case ("messages",) | ("input", *_):
            return {name: opened(cells[name]) for name in layout.needed} | extra
        case ("prompt", "chosen", "rejected"):
            asked, chosen, rejected = (opened(cells[name]) for name in layout.needed)
            return {
                "input": {"messages": turns(cells, asked)},
                "preferred_output": answer(chosen),
                "non_preferred_output": answer(rejected),
            } | extra
        case ("prompt", "completion") if not cells.get("system"):
            return {name: plain(cells[name]) for name in layout.needed} | extra
    asked, answered = (plain(cells[name]) for name in layout.needed)
    return {"messages": [*turns(cells, asked), *answer(answered)]} | extra


def turns(cells: Mapping[str, Any], asked: Any) -> list[Any]:
    """What stands before the answer."""
    if isinstance(asked, list):
        return asked
    system = [{"role": "system", "content": plain(cells["system"])}] if cells.get("system") else []
    more = plain(cells.get("input"))
    return [*system, {"role": "user", "content": f"{asked}\n\n{more}" if more else asked}]


def answer(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [{"role": "assistant", "content": given}]


def plain(cell: Any) -> str | None:
    """A cell as text. Raises ValueError for bytes that are none."""
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, bytes):
        try:
            return cell.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError("a cell is not UTF-8") from error
    return json.dumps(cell) if isinstance(cell, (list, dict)) else str(cell)


def opened(cell: Any) -> Any:
    """A cell with JSON inside is that JSON, if it is a list or an object: CSV has no other way to hold messages."""
    cell = plain(cell) if isinstance(cell, bytes) else cell
    if isinstance(cell, str) and cell[:1] in ("[", "{"):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        return value if isinstance(value, (list, dict)) else cell
    return cell


def is_true(cell: Any) -> bool:
    """Raises ValueError for what is neither."""
    text = "" if cell is None else str(cell).strip().lower()
    if text not in TRUE | FALSE:
        raise ValueError("'unwanted' must be true or false")
    return text in TRUE
