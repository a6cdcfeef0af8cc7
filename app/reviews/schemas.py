"""Reviews on the wire."""

from typing import Self

from pydantic import BaseModel, Field

from app.reviews.tables import Review
from app.visible import Prose
from app.wire import Strict, unix


class ReviewWrite(Strict):
    rating: int = Field(ge=1, le=5)
    body: Prose = Field(default="", max_length=4_000)


class ReviewOut(BaseModel):
    id: str
    object: str = "review"
    author: str
    rating: int
    body: str
    created_at: int
    updated_at: int

    @classmethod
    def of(cls, review: Review, author: str) -> Self:
        """`author` is a handle."""
        return cls(
            id=review.id,
            author=author,
            rating=review.rating,
            body=review.body,
            created_at=unix(review.created_at),
            updated_at=unix(review.updated_at),
        )
