"""Browsing and searching: full text first, near misses by trigrams, filters, orders, cursors, facets."""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import BigInteger, ColumnElement, case, cast, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from app.accounts.tables import Account
from app.catalog.cursor import read_cursor, write_cursor
from app.catalog.facets import COUNTED, count
from app.catalog.schemas import ListingOut, ListingPage
from app.catalog.search_text import query_of
from app.catalog.spelling import admit_candidates, beginnings, misspelt
from app.catalog.tables import Listing, ListingVersion, Price
from app.database import utc_now

Sort = Literal["relevance", "trending", "newest", "rating", "price", "popular"]
MILLION = 1_000_000
# ts_rank_cd's normalisation to rank / (rank + 1).
BELOW_ONE = 32


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
        admit_candidates(tx)
    prices = prices_in_force()
    matching = select(*COUNTED).join(prices, prices.c.listing_id == Listing.id)
    matching = matching.join(Account, Account.id == Listing.account_id).where(*conditions(wanted, prices))
    total, facets = count(tx, matching)
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
        total=total,
        facets=facets,
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


def similarity(q: str) -> ColumnElement[float]:
    return func.word_similarity(q.lower(), Listing.search_text)


def relevance(q: str) -> ColumnElement[Any]:
    """Listings that have the words come first, then those with words that begin so, then near misses.

    Within each: weighted words and likeness, both below 1.
    """
    words = Listing.search_vector.op("@@", is_comparison=True)(query_of(q))
    place = case((words, 4), (beginnings(q), 2), else_=0)
    return place + func.ts_rank_cd(Listing.search_vector, query_of(q), BELOW_ONE) + similarity(q)


def sort_key(wanted: Search, prices: Any) -> ColumnElement[int]:
    """A whole number, highest first, so that a cursor can name a place exactly."""
    rating = (Listing.rating_sum * MILLION) / func.greatest(Listing.rating_count, 1)
    # As Reddit's "hot": ten times the sales weigh as much as a week; it does not depend on now.
    hot = func.log(Listing.sales_count + 1) + func.extract("epoch", Listing.created_at) / (7 * 86_400)
    if wanted.order == "relevance" and wanted.q.strip():
        return cast(relevance(wanted.q) * MILLION, BigInteger)
    keys: dict[str, ColumnElement[Any]] = {
        "newest": func.extract("epoch", Listing.created_at) * 1000,
        "rating": rating,
        "price": -prices.c.access_micros,
        "popular": Listing.sales_count * 1,
    }
    return cast(keys.get(wanted.order, hot * MILLION), BigInteger)
