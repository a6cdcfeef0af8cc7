"""A listing's page: its card, its price, a chat to try it, its reviews; buying and reviewing."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import Response

from app.accounts.rules import RESERVED_HANDLES
from app.billing.purchase import buy, has_bought
from app.catalog.find import describe, find_listing, list_versions
from app.catalog.tables import Listing
from app.database import transaction
from app.errors import AppError, ModelNotFound, ModelNotPurchased
from app.inference.model_target import resolve
from app.reviews.review import find_review, list_reviews, may_review, write_review
from app.reviews.schemas import ReviewWrite
from app.settings import get_settings
from app.web.forms import MemberForm, checked, submit
from app.web.visitors import AnyVisitor, SignedIn, Visitor
from app.wire import check_cursor

router = APIRouter()
REVIEWS = 10


class Handle(Convertor[str]):
    """A seller's handle, never a reserved word: the store's own addresses keep their own 404 and 405."""

    regex = f"(?!(?:{'|'.join(sorted(RESERVED_HANDLES))})/)[a-z0-9-]{{2,40}}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("handle", Handle())
ADDRESS = "/{handle:handle}/{name}"


class PriceSeen(BaseModel):
    """What the buyer saw on the button."""

    expected_price_micros: int


class Stars(BaseModel):
    rating: int
    body: str = ""


@router.get(ADDRESS)
def read_listing(
    handle: str, name: str, visitor: AnyVisitor, after: Annotated[str, Query(max_length=40)] | None = None
) -> Response:
    return listing_page(visitor, handle, name, after=after)


def listing_page(
    visitor: Visitor, handle: str, name: str, refusal: AppError | None = None, after: str | None = None, **shown: Any
) -> Response:
    with transaction() as tx:
        row = find_listing(tx, handle, name, visitor.account_id)
        own = row.account_id == visitor.account_id
        reviews = list_reviews(tx, row.id, check_cursor(after, "rev"), REVIEWS)
        context = {
            "listing": describe(tx, row, visitor.account_id),
            "own": own,
            "versions": list_versions(tx, row, own),
            "reviews": reviews[:REVIEWS],
            "older": reviews[REVIEWS - 1][0].id if len(reviews) > REVIEWS else None,
            "store": get_settings().api.public_url or str(visitor.request.base_url).rstrip("/"),
            **seen_by(tx, visitor, row, f"{handle}/{name}"),
        }
    return visitor.show("listing", refusal, **context | shown)


def seen_by(tx: Session, visitor: Visitor, listing: Listing, model: str) -> dict[str, Any]:
    """What this visitor may do here: `call` is how a call would be charged, None where they cannot call."""
    if visitor.caller is None:
        return {"call": None, "bought": False, "may_review": False, "review": None}
    try:
        call = resolve(tx, visitor.caller, model).call
    except (ModelNotPurchased, ModelNotFound):
        call = None
    return {
        "call": call,
        "bought": has_bought(tx, visitor.caller.account_id, listing.id),
        "may_review": may_review(tx, visitor.caller.account_id, listing),
        "review": find_review(tx, visitor.caller.account_id, listing.id),
    }


@router.post(ADDRESS + "/buy")
def buy_access(handle: str, name: str, member: SignedIn, form: MemberForm) -> Response:
    here = f"/{handle}/{name}?done=bought"

    def effect(tx: Session) -> str:
        seen = form.parse(PriceSeen)

        def bought() -> str:
            buy(tx, member.account_id, find_listing(tx, handle, name, member.account_id), seen.expected_price_micros)
            return here

        return form.once(tx, member.account_id, bought)

    return submit(effect, lambda refusal: listing_page(member, handle, name, refusal))


@router.post(ADDRESS + "/review")
def review(handle: str, name: str, member: SignedIn, form: MemberForm) -> Response:
    def effect(tx: Session) -> str:
        body = checked(ReviewWrite, form.parse(Stars).model_dump())
        write_review(tx, member.account_id, find_listing(tx, handle, name, member.account_id), body.rating, body.body)
        return f"/{handle}/{name}?done=reviewed#reviews"

    return submit(effect, lambda refusal: listing_page(member, handle, name, refusal, values=form.values))
