"""Reviews: one per buyer and listing, editable; the listing keeps the sum and the count."""

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.accounts.tables import Account
from app.billing.purchase import has_bought
from app.billing.usage import has_called
from app.catalog.tables import Listing
from app.errors import Forbidden
from app.reviews.tables import Review


def may_review(tx: Session, account_id: str, listing: Listing) -> bool:
    """Those who bought or called it, and never its owner."""
    used = has_bought(tx, account_id, listing.id) or has_called(tx, account_id, listing.id)
    return used and listing.account_id != account_id


def find_review(tx: Session, account_id: str, listing_id: str) -> Review | None:
    return tx.scalar(select(Review).where(Review.listing_id == listing_id, Review.account_id == account_id))


def write_review(tx: Session, account_id: str, listing: Listing, rating: int, body: str) -> Review:
    """Write or rewrite. Raises Forbidden for owners and for those who neither bought nor called it."""
    if listing.account_id == account_id:
        raise Forbidden("You cannot review your own listing.")
    if not may_review(tx, account_id, listing):
        raise Forbidden("Buy or call a listing before reviewing it.")
    # The listing's row is the lock: two edits of one review cannot both count its old rating.
    tx.refresh(listing, with_for_update=True)
    review = find_review(tx, account_id, listing.id)
    added, before = (0, review.rating) if review else (1, 0)
    if review is None:
        review = Review(listing_id=listing.id, account_id=account_id)
        tx.add(review)
    review.rating, review.body = rating, body
    counts = {
        "rating_sum": Listing.rating_sum + (rating - before),
        "rating_count": Listing.rating_count + added,
    }
    tx.execute(update(Listing).where(Listing.id == listing.id).values(**counts))
    tx.flush()
    return review


def list_reviews(tx: Session, listing_id: str, after: str | None, limit: int) -> list[tuple[Review, str]]:
    """With their authors' handles, newest first, up to `limit + 1`."""
    query = select(Review, Account.handle).join(Account, Account.id == Review.account_id)
    query = query.where(Review.listing_id == listing_id)
    if after is not None:
        query = query.where(Review.id < after)
    return list(tx.execute(query.order_by(Review.id.desc()).limit(limit + 1)))
