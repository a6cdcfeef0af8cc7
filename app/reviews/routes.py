"""GET and POST /v1/listings/{handle}/{name}/reviews."""

from typing import Annotated, Self

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.authenticate import Caller
from app.accounts.tables import Account
from app.catalog.find import find_listing
from app.dependencies import Transaction, Viewer, requires
from app.reviews.review import list_reviews, write_review
from app.reviews.tables import Review
from app.wire import Limit, Page, Strict, check_cursor, page_of, unix

router = APIRouter(prefix="/v1/listings/{handle}/{name}/reviews", tags=["reviews"])
Reviewer = Annotated[Caller, Depends(requires("reviews"))]


class ReviewWrite(Strict):
    rating: int = Field(ge=1, le=5)
    body: str = Field(default="", max_length=4_000)


class ReviewOut(BaseModel):
    id: str
    object: str = "review"
    author: str
    rating: int
    body: str
    created_at: int
    updated_at: int

    @classmethod
    def of(cls, tx: Session, review: Review) -> Self:
        author = tx.scalars(select(Account.handle).where(Account.id == review.account_id)).one()
        return cls(
            id=review.id,
            author=author,
            rating=review.rating,
            body=review.body,
            created_at=unix(review.created_at),
            updated_at=unix(review.updated_at),
        )


@router.get("")
def read_reviews(
    handle: str, name: str, tx: Transaction, viewer: Viewer, limit: Limit = 20, after: str | None = None
) -> Page[ReviewOut]:
    listing = find_listing(tx, handle, name, viewer.account_id if viewer else None)
    rows = list_reviews(tx, listing.id, check_cursor(after, "rev"), limit)
    return page_of([ReviewOut.of(tx, row) for row in rows], [row.id for row in rows], limit)


@router.post("", status_code=201)
def create_review(handle: str, name: str, body: ReviewWrite, tx: Transaction, caller: Reviewer) -> ReviewOut:
    listing = find_listing(tx, handle, name, caller.account_id)
    return ReviewOut.of(tx, write_review(tx, caller.account_id, listing, body.rating, body.body))
