"""Listings (GPTs for sale), their immutable versions and their immutable prices."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import ARRAY, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, utc_now
from app.ids import new_id


class Listing(Base):
    """`visibility`: public | unlisted | private. `search_text`/`search_vector` are written by catalog.search."""

    __tablename__ = "listings"
    __table_args__ = (
        UniqueConstraint("account_id", "name"),
        Index("ix_listings_search_vector", "search_vector", postgresql_using="gin"),
        Index(
            "ix_listings_search_text_trgm",
            "search_text",
            postgresql_using="gin",
            postgresql_ops={"search_text": "gin_trgm_ops"},
        ),
    )
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("list"))
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), index=True)
    name: Mapped[str]
    title: Mapped[str]
    summary: Mapped[str]
    description: Mapped[str]
    category: Mapped[str] = mapped_column(index=True)
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    license: Mapped[str]
    visibility: Mapped[str] = mapped_column(default="public")
    published_version: Mapped[int | None]
    base_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    search_text: Mapped[str] = mapped_column(default="")
    search_vector: Mapped[str | None] = mapped_column(TSVECTOR)
    rating_sum: Mapped[int] = mapped_column(default=0)
    rating_count: Mapped[int] = mapped_column(default=0)
    sales_count: Mapped[int] = mapped_column(default=0)
    delisted_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class ListingVersion(Base):
    """`status`: checking → published | rejected (with `reasons`), later delisted | quarantined."""

    __tablename__ = "listing_versions"
    __table_args__ = (UniqueConstraint("listing_id", "number"),)
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("ver"))
    listing_id: Mapped[str] = mapped_column(ForeignKey("listings.id"))
    number: Mapped[int]
    variant_id: Mapped[str] = mapped_column(ForeignKey("variants.id"))
    system_prompt: Mapped[str | None]
    defaults: Mapped[dict[str, Any]] = mapped_column(default=dict)
    starters: Mapped[list[Any]] = mapped_column(default=list)
    examples: Mapped[list[Any]] = mapped_column(default=list)
    status: Mapped[str] = mapped_column(default="checking", index=True)
    reasons: Mapped[list[Any]] = mapped_column(default=list)
    published_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Price(Base):
    """Never updated: the row in force is the latest one whose `effective_at` has come. Micros."""

    __tablename__ = "prices"
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("price"))
    listing_id: Mapped[str] = mapped_column(ForeignKey("listings.id"), index=True)
    access_micros: Mapped[int]
    input_micros_per_million_tokens: Mapped[int]
    output_micros_per_million_tokens: Mapped[int]
    cached_input_micros_per_million_tokens: Mapped[int | None]
    free_tokens: Mapped[int] = mapped_column(default=0)
    effective_at: Mapped[datetime] = mapped_column(default=utc_now)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
