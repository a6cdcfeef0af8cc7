"""Prices are immutable rows: the one in force is the latest whose time has come."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.catalog.schemas import PricesIn
from app.catalog.tables import Listing, Price
from app.database import utc_now
from app.errors import PriceBelowBase
from app.variants.tables import BaseModel


def price_in_force(tx: Session, listing_id: str, at: datetime | None = None) -> Price:
    """The price at that moment (now unless named)."""
    due = select(Price).where(Price.listing_id == listing_id, Price.effective_at <= (at or utc_now()))
    return tx.scalars(due.order_by(Price.effective_at.desc(), Price.id.desc()).limit(1)).one()


def list_prices(tx: Session, listing_id: str) -> list[Price]:
    """Newest first, those still to come included."""
    query = select(Price).where(Price.listing_id == listing_id)
    return list(tx.scalars(query.order_by(Price.effective_at.desc(), Price.id.desc()).limit(100)))


def set_price(tx: Session, listing: Listing, prices: PricesIn, effective_at: datetime | None = None) -> Price:
    """Add a row, in force at once unless a later moment is named.

    Raises PriceBelowBase: the platform's part of each token is never sold at a loss.
    """
    # The same lock that a purchase takes: what was bought before the change is charged at the old price.
    tx.refresh(listing, with_for_update={"key_share": True})
    base = tx.get_one(BaseModel, listing.base_id)
    for side in ("input_micros_per_million_tokens", "output_micros_per_million_tokens"):
        if getattr(prices, side) < getattr(base, side):
            least = f"A token price is at least the base's, here {getattr(base, side)} micros per million tokens."
            raise PriceBelowBase(least, param=f"prices.{side}")
    price = Price(
        listing_id=listing.id,
        access_micros=prices.access_micros,
        input_micros_per_million_tokens=prices.input_micros_per_million_tokens,
        output_micros_per_million_tokens=prices.output_micros_per_million_tokens,
        cached_input_micros_per_million_tokens=prices.cached_input_micros_per_million_tokens,
        effective_at=effective_at or utc_now(),
    )
    tx.add(price)
    tx.flush()
    return price
