"""What entitled buyers say of a listing: one review each, editable."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, utc_now
from app.ids import new_id


class Review(Base):
    __tablename__ = "reviews"
    __table_args__ = (
        UniqueConstraint("listing_id", "account_id"),
        CheckConstraint("rating BETWEEN 1 AND 5", name="rating_in_range"),
    )
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("rev"))
    listing_id: Mapped[str] = mapped_column(ForeignKey("listings.id"))
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    rating: Mapped[int]
    body: Mapped[str]
    updated_at: Mapped[datetime] = mapped_column(default=utc_now, onupdate=utc_now)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
