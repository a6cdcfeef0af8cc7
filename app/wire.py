"""What every door shares on the wire: strict bodies, unix times, pages with cursors."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict

from app.errors import InvalidCursor
from app.ids import ALPHABET

T = TypeVar("T", bound=BaseModel)

Limit = Annotated[int, Query(ge=1, le=100)]


class Strict(BaseModel):
    """A request body: unknown fields are refused, numbers are finite, nothing is coerced from text."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Page(BaseModel, Generic[T]):
    """One page of a list, newest first; `after=<last_id>` asks for the next."""

    object: str = "list"
    data: Sequence[T]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


def page_of(rows: Sequence[T], ids: Sequence[str], limit: int) -> Page[T]:
    """A page from up to `limit + 1` rows: the extra one only says that there are more."""
    shown, shown_ids = rows[:limit], ids[:limit]
    return Page(
        data=shown,
        first_id=shown_ids[0] if shown_ids else None,
        last_id=shown_ids[-1] if shown_ids else None,
        has_more=len(rows) > limit,
    )


def check_cursor(after: str | None, prefix: str) -> str | None:
    """`after` itself when it has the form of an id of this kind; raises InvalidCursor otherwise."""
    if after is None:
        return None
    head, dash, tail = after.partition("-")
    if head != prefix or not dash or len(tail) != 26 or set(tail) - set(ALPHABET):
        raise InvalidCursor("That cursor is not an id of this list.", param="after")
    return after


def unix(moment: datetime) -> int:
    """Whole seconds since 1970."""
    return int(moment.timestamp())
