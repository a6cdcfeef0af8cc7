"""API keys: made, shown once, revoked."""

from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.accounts.api_keys import create_key, list_keys, revoke_key
from app.accounts.rules import SCOPES, check_scopes
from app.accounts.schemas import ApiKeyCreate
from app.database import transaction
from app.errors import AppError
from app.web.forms import MemberForm, checked, submit
from app.web.visitors import Member, SignedIn

router = APIRouter()
GRANTS = {"calls": ("Call models", {"inference", "models"}), "all": ("Everything this account may do", SCOPES)}


@router.get("/keys")
def read_keys(member: SignedIn) -> Response:
    return keys_page(member)


def keys_page(member: Member, refusal: AppError | None = None, secret: str = "") -> Response:
    with transaction() as tx:
        keys = list_keys(tx, member.account_id)
    return member.show("keys", refusal, keys=keys, secret=secret, grants=GRANTS)


@router.post("/keys")
def create(member: SignedIn, form: MemberForm) -> Response:
    """The answer itself shows the secret: a redirect could not, and the store keeps only its hash."""
    try:
        with transaction() as tx:
            granted = GRANTS.get(form.fields.get("grant", ""), GRANTS["calls"])[1]
            body = checked(ApiKeyCreate, {"name": form.fields.get("name", ""), "scopes": sorted(granted)})
            _, secret = create_key(tx, member.account_id, body.name, check_scopes(body.scopes, member.caller.scopes))
    except AppError as refusal:
        return keys_page(member, refusal)
    return keys_page(member, secret=secret)


@router.post("/keys/{key_id}/revoke")
def revoke(key_id: str, member: SignedIn, form: MemberForm) -> Response:
    def effect(tx: Session) -> str:
        revoke_key(tx, member.account_id, key_id)
        return "/keys?done=revoked"

    return submit(effect, lambda refusal: keys_page(member, refusal))
