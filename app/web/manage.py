"""What a seller does with a listing after publishing it: another price, another version, off the shelf."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.catalog.find import describe, find_own_listing, latest_version, list_versions
from app.catalog.prices import set_price
from app.catalog.publish import add_version, delist
from app.catalog.schemas import PriceOut, PricesIn, VersionCreate
from app.catalog.tables import Listing
from app.database import transaction
from app.errors import AppError
from app.variants.bases import find_base
from app.variants.tables import Variant
from app.variants.variants import list_variants
from app.web.forms import MemberForm, Posted, checked, submit
from app.web.listing import ADDRESS
from app.web.publish import Prices, lines_of
from app.web.text import dollars
from app.web.visitors import Member, SignedIn

router = APIRouter()


class Version(BaseModel):
    """All that the form shows: what is left blank is blank in the new version. Defaults and examples stay."""

    model: str
    system_prompt: str | None = None
    starters: Annotated[list[str], BeforeValidator(lines_of)] = []


class Sure(BaseModel):
    sure: Literal["yes"]


@router.get(ADDRESS + "/manage")
def read(handle: str, name: str, member: SignedIn) -> Response:
    return manage_page(member, handle, name)


def manage_page(
    member: Member, handle: str, name: str, refusal: AppError | None = None, sent: dict[str, str] | None = None
) -> Response:
    """`sent`: the refused form as it was filled in; the others show how things are."""
    with transaction() as tx:
        row = find_own_listing(tx, handle, name, member.account_id)
        listing = describe(tx, row, member.account_id)
        context: dict[str, Any] = {
            "listing": listing,
            "base": find_base(tx, row.base_id),
            "models": [each for each in list_variants(tx, member.account_id) if each.base_id == row.base_id],
            "versions": list_versions(tx, row, for_owner=True),
            "values": present(tx, row, listing.prices) | (sent or {}),
        }
    return member.show("manage", refusal, **context)


def present(tx: Session, listing: Listing, prices: PriceOut) -> dict[str, str]:
    """What the forms hold at first: the prices in force and the latest version."""
    latest = latest_version(tx, listing.id)
    return {each: dollars(getattr(prices, each)) for each in Prices.model_fields} | {
        "model": tx.get_one(Variant, latest.variant_id).model,
        "system_prompt": latest.system_prompt or "",
        "starters": "\n".join(latest.starters),
    }


def filled_in(form: Posted, model: type[BaseModel]) -> dict[str, str]:
    return dict.fromkeys(model.model_fields, "") | form.values


@router.post(ADDRESS + "/prices")
def change_price(handle: str, name: str, member: SignedIn, form: MemberForm) -> Response:
    def effect(tx: Session) -> str:
        prices = checked(PricesIn, form.parse(Prices).model_dump())

        def changed() -> str:
            set_price(tx, find_own_listing(tx, handle, name, member.account_id), prices)
            return f"/{handle}/{name}/manage?done=priced"

        return form.once(tx, member.account_id, changed)

    return submit(effect, lambda refusal: manage_page(member, handle, name, refusal, filled_in(form, Prices)))


@router.post(ADDRESS + "/versions")
def publish_version(handle: str, name: str, member: SignedIn, form: MemberForm) -> Response:
    def effect(tx: Session) -> str:
        body = checked(VersionCreate, form.parse(Version).model_dump())

        def added() -> str:
            add_version(tx, find_own_listing(tx, handle, name, member.account_id), body)
            return f"/{handle}/{name}/manage?done=version"

        return form.once(tx, member.account_id, added)

    return submit(effect, lambda refusal: manage_page(member, handle, name, refusal, filled_in(form, Version)))


@router.post(ADDRESS + "/delist")
def take_off_sale(handle: str, name: str, member: SignedIn, form: MemberForm) -> Response:
    def effect(tx: Session) -> str:
        form.parse(Sure)
        delist(tx, find_own_listing(tx, handle, name, member.account_id))
        return f"/{handle}/{name}/manage?done=delisted"

    return submit(effect, lambda refusal: manage_page(member, handle, name, refusal))
