"""Browsing and searching: full text first, near misses by trigrams, filters, orders, cursors, facets."""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import BigInteger, ColumnElement, Select, and_, cast, exists, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from app.accounts.tables import Account
from app.catalog.cursor import read_cursor, write_cursor
from app.catalog.schemas import Facet, ListingOut, ListingPage
from app.catalog.search_text import query_of
from app.catalog.tables import Listing, ListingVersion, Price
from app.database import utc_now

Sort = Literal["relevance", "trending", "newest", "rating", "price", "popular"]
MILLION = 1_000_000
# Shares of common trigrams: worth a closer look, and surely the same word.
CANDIDATE, SAME_WORD = 0.2, 0.6
# Up to this many letters, two wrong ones make another word.
SHORT_WORD = 5
MAX_WORDS, MAX_WORD = 8, 60
FACETS: dict[str, Any] = {
    "category": Listing.category,
    "tag": func.unnest(Listing.tags),
    "base_model": Listing.base_id,
    "license": Listing.license,
}


@dataclass(frozen=True)
class Search:
    """What is looked for. Every filter narrows; `price` is what access costs: free or paid."""

    q: str = ""
    category: str | None = None
    tag: str | None = None
    base_model: str | None = None
    license: str | None = None
    price: Literal["free", "paid"] | None = None
    handle: str | None = None
    sort: Sort | None = None

    @property
    def order(self) -> Sort:
        return self.sort or ("relevance" if self.q else "trending")


def search(tx: Session, wanted: Search, limit: int, after: str | None) -> ListingPage:
    """One page of listings on sale. Raises InvalidCursor."""
    if wanted.q:
        tx.execute(select(func.set_config("pg_trgm.word_similarity_threshold", str(CANDIDATE), True)))
    prices = prices_in_force()
    matching = select(Listing.id).join(prices, prices.c.listing_id == Listing.id)
    matching = matching.join(Account, Account.id == Listing.account_id).where(*conditions(wanted, prices))
    key = sort_key(wanted, prices)
    query = (
        select(Listing, Account.handle, ListingVersion, Price, key)
        .join(Account, Account.id == Listing.account_id)
        .join(prices, prices.c.listing_id == Listing.id)
        .join(Price, Price.id == prices.c.id)
        .join(
            ListingVersion,
            (ListingVersion.listing_id == Listing.id) & (ListingVersion.number == Listing.published_version),
        )
        .where(*conditions(wanted, prices))
    )
    if after is not None:
        value, last = read_cursor(after, wanted.order)
        query = query.where(tuple_(key, Listing.id) < tuple_(literal(value, BigInteger), literal(last)))
    rows = tx.execute(query.order_by(key.desc(), Listing.id.desc()).limit(limit + 1)).all()
    shown = rows[:limit]
    cursors = [write_cursor(wanted.order, int(row[4]), row[0].id) for row in shown]
    return ListingPage(
        data=[ListingOut.of(row[0], row[1], row[2], row[3], "published", False) for row in shown],
        first_id=cursors[0] if cursors else None,
        last_id=cursors[-1] if cursors else None,
        has_more=len(rows) > limit,
        total=tx.scalar(select(func.count()).select_from(matching.subquery())) or 0,
        facets={name: facet(tx, column, matching) for name, column in FACETS.items()},
    )


def prices_in_force() -> Any:
    """One row per listing: the price that a buyer would pay now."""
    due = select(Price.listing_id, Price.id, Price.access_micros).where(Price.effective_at <= utc_now())
    newest = due.ext(distinct_on(Price.listing_id)).order_by(
        Price.listing_id, Price.effective_at.desc(), Price.id.desc()
    )
    return newest.subquery()


def conditions(wanted: Search, prices: Any) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [
        Listing.visibility == "public",
        Listing.published_version.is_not(None),
        Listing.delisted_at.is_(None),
    ]
    if wanted.q.strip():
        words = Listing.search_vector.op("@@", is_comparison=True)(query_of(wanted.q))
        found.append(words | misspelt(wanted.q))
    for column, value in (
        (Listing.category, wanted.category),
        (Listing.base_id, wanted.base_model),
        (Listing.license, wanted.license),
        (Account.handle, wanted.handle),
    ):
        if value is not None:
            found.append(column == value)
    if wanted.tag is not None:
        found.append(Listing.tags.contains([wanted.tag.lower()]))
    if wanted.price is not None:
        free = prices.c.access_micros == 0
        found.append(free if wanted.price == "free" else ~free)
    return found


def misspelt(q: str) -> ColumnElement[bool]:
    """Every word of `q` is part of a word of the listing, or one or two letters away from one."""
    near = [near_word(word[:MAX_WORD]) for word in q.lower().split()[:MAX_WORDS]]
    return and_(*near)


def near_word(word: str) -> ColumnElement[bool]:
    """Trigrams first, because they have an index; then edits, because trigrams miss a swapped letter."""
    words = func.unnest(func.string_to_array(Listing.search_text, " ")).column_valued("word")
    edits = 2 if len(word) > SHORT_WORD else 1
    close = exists().where(func.levenshtein_less_equal(func.left(words, MAX_WORD), word, edits) <= edits)
    candidate = literal(word).op("<%", is_comparison=True)(Listing.search_text)
    return candidate & (close | (func.word_similarity(word, Listing.search_text) >= SAME_WORD))


def similarity(q: str) -> ColumnElement[float]:
    return func.word_similarity(q.lower(), Listing.search_text)


def sort_key(wanted: Search, prices: Any) -> ColumnElement[int]:
    """A whole number, highest first, so that a cursor can name a place exactly."""
    rating = (Listing.rating_sum * MILLION) / func.greatest(Listing.rating_count, 1)
    # As Reddit's "hot": ten times the sales weigh as much as a week; it does not depend on now.
    hot = func.log(Listing.sales_count + 1) + func.extract("epoch", Listing.created_at) / (7 * 86_400)
    if wanted.order == "relevance" and wanted.q.strip():
        rank: ColumnElement[Any] = func.ts_rank_cd(Listing.search_vector, query_of(wanted.q)) + similarity(wanted.q)
        return cast(rank * MILLION, BigInteger)
    keys: dict[str, ColumnElement[Any]] = {
        "newest": func.extract("epoch", Listing.created_at) * 1000,
        "rating": rating,
        "price": -prices.c.access_micros,
        "popular": Listing.sales_count * 1,
    }
    return cast(keys.get(wanted.order, hot * MILLION), BigInteger)


def facet(tx: Session, column: Any, matching: Select[Any]) -> list[Facet]:
    """How many of the matching listings have each value."""
    value = column.label("value")
    counted = select(value, func.count()).where(Listing.id.in_(matching)).group_by(value)
    rows = tx.execute(counted.order_by(func.count().desc(), value).limit(20))
    return [Facet(value=value, count=count) for value, count in rows]
