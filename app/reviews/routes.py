"""GET and POST /v1/listings/{handle}/{name}/reviews."""

from typing import Annotated

from fastapi import APIRouter, Depends

from app.accounts.authenticate import Caller
from app.catalog.find import find_listing
from app.dependencies import Transaction, Viewer, requires
from app.reviews.review import list_reviews, write_review
from app.reviews.schemas import ReviewOut, ReviewWrite
from app.wire import Limit, Page, check_cursor, page_of

router = APIRouter(prefix="/v1/listings/{handle}/{name}/reviews", tags=["reviews"])
Reviewer = Annotated[Caller, Depends(requires("reviews"))]


@router.get("")
def read_reviews(
    handle: str, name: str, tx: Transaction, viewer: Viewer, limit: Limit = 20, after: str | None = None
) -> Page[ReviewOut]:
    listing = find_listing(tx, handle, name, viewer.account_id if viewer else None)
    rows = list_reviews(tx, listing.id, check_cursor(after, "rev"), limit)
    return page_of([ReviewOut.of(*row) for row in rows], [review.id for review, _ in rows], limit)


@router.post("", status_code=201)
def create_review(handle: str, name: str, body: ReviewWrite, tx: Transaction, caller: Reviewer) -> ReviewOut:
    """Sent again, it replaces what the caller wrote before."""
    listing = find_listing(tx, handle, name, caller.account_id)
    return ReviewOut.of(write_review(tx, caller.account_id, listing, body.rating, body.body), caller.handle)
