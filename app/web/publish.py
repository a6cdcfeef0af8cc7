"""Offering a model for sale."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, BeforeValidator
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.catalog.publish import create_listing
from app.catalog.rules import LICENSES
from app.catalog.schemas import ListingCreate
from app.database import transaction
from app.errors import AppError
from app.variants.bases import find_base
from app.variants.variants import list_variants
from app.web.forms import MemberForm, Posted, checked, submit
from app.web.money import Micros
from app.web.visitors import Member, SignedIn

router = APIRouter()


def lines_of(text: object) -> object:
    return [line.strip() for line in text.splitlines() if line.strip()] if isinstance(text, str) else text


def words_of(text: object) -> object:
    return [word.strip() for word in text.split(",") if word.strip()] if isinstance(text, str) else text


class Prices(BaseModel):
    """Fields in dollars, named as the API names the micros, so that its refusals find them."""

    access_micros: Micros = 0
    input_micros_per_million_tokens: Micros
    output_micros_per_million_tokens: Micros


class Offer(BaseModel):
    """The text fields, as a browser sends them."""

    model: str
    name: str
    title: str
    summary: str
    description: str = ""
    category: str = "other"
    tags: Annotated[list[str], BeforeValidator(words_of)] = []
    license: str = "other"
    system_prompt: str | None = None
    starters: Annotated[list[str], BeforeValidator(lines_of)] = []

    @classmethod
    def listing(cls, form: Posted) -> ListingCreate:
        prices = form.parse(Prices).model_dump()
        return checked(ListingCreate, form.parse(cls).model_dump() | {"prices": prices})


@router.get("/listings/new")
def offer_form(member: SignedIn, model: Annotated[str, Query(max_length=300)] = "") -> Response:
    return offer_page(member, None, {"model": model})


def offer_page(member: Member, refusal: AppError | None, values: dict[str, str], **more: Any) -> Response:
    with transaction() as tx:
        models = list_variants(tx, member.account_id)
        chosen = next((each for each in models if each.model == values.get("model")), models[0] if models else None)
        base = find_base(tx, chosen.base_id) if chosen else None
    shown = {"models": models, "base": base, "licenses": sorted(LICENSES)} | more
    return member.show("publish", refusal, values=values, **shown)


@router.post("/listings")
def publish(member: SignedIn, form: MemberForm) -> Response:
    def effect(tx: Session) -> str:
        body = Offer.listing(form)

        def published() -> str:
            create_listing(tx, member.account_id, body)
            return f"/{member.caller.handle}/{body.name}?done=published"

        return form.once(tx, member.account_id, published)

    return submit(effect, lambda refusal: offer_page(member, refusal, form.values))
