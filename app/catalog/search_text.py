"""What search sees of a listing: weighted words, and pairs of characters for scripts without spaces.

Postgres's parsers find no words in Chinese or Japanese text; overlapping bigrams are the usual way out.
"""

import re
from typing import Literal

from sqlalchemy import func, literal_column, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from app.accounts.tables import Account
from app.catalog.tables import Listing

CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af]+")


def characters(text: str) -> str:
    """Every CJK character by itself, so that a search for one finds it inside a word."""
    return " ".join("".join(CJK.findall(text)))


def bigrams(text: str) -> str:
    """Of every run of CJK characters: 北京大学 → 北京 京大 大学; a single character stays itself."""
    pairs = []
    for run in CJK.findall(text):
        pairs += [run[at : at + 2] for at in range(len(run) - 1)] or [run]
    return " ".join(pairs)


def refresh_search(tx: Session, listing: Listing) -> None:
    """After each change of what it says. Title and name weigh most, then summary and tags, then the card."""
    handle = tx.scalars(select(Account.handle).where(Account.id == listing.account_id)).one()
    tags = " ".join(listing.tags)
    name = listing.name.replace("-", " ").replace("_", " ")
    parts: list[tuple[Literal["A", "B", "C"], str]] = [
        ("A", f"{listing.title} {name}"),
        ("B", f"{listing.summary} {tags} {handle} {listing.category.replace('-', ' ')}"),
        ("C", listing.description),
    ]
    vectors = [vector(weight, text) for weight, text in parts]
    text = f"{listing.title} {name} {listing.summary} {tags} {handle}".lower()
    whole = vectors[0].op("||")(vectors[1]).op("||")(vectors[2])
    tx.execute(update(Listing).where(Listing.id == listing.id).values(search_text=text, search_vector=whole))


def vector(weight: Literal["A", "B", "C"], text: str) -> ColumnElement[object]:
    """Stemmed English words, plain bigrams and characters, of one weight."""
    pairs = f"{bigrams(text)} {characters(text)}"
    words = func.to_tsvector("english", CJK.sub(" ", text)).op("||")(func.to_tsvector("simple", pairs))
    # An untyped literal: a bound parameter would be text, which setweight does not take.
    return func.setweight(words, literal_column(f"'{weight}'"))


def query_of(q: str) -> ColumnElement[object]:
    """All words and all bigrams of `q` must occur."""
    words, pairs = CJK.sub(" ", q).strip(), bigrams(q)
    parts = [func.websearch_to_tsquery("english", words)] if words else []
    parts += [func.plainto_tsquery("simple", pairs)] if pairs else []
    return parts[0].op("&&")(parts[1]) if len(parts) == 2 else parts[0]
