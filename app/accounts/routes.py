"""GET /v1/me, API keys, browser sessions."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.accounts.api_keys import create_key, earliest_expiry, list_keys, revoke_key
from app.accounts.authenticate import Caller
from app.accounts.rules import check_budget_scopes, check_scopes
from app.accounts.schemas import AccountOut, ApiKeyCreate, ApiKeyOut, Deleted, Me, SessionCreate
from app.accounts.sessions import LIFETIME, close_session, open_session
from app.accounts.tables import Account
from app.dependencies import SESSION_COOKIE, CurrentCaller, Transaction, requires, slowing_guesses
from app.settings import get_settings
from app.wire import Page

router = APIRouter(prefix="/v1", tags=["accounts"])
KeyHolder = Annotated[Caller, Depends(requires("keys"))]


@router.get("/me")
def me(tx: Transaction, caller: CurrentCaller) -> Me:
    return Me(account=AccountOut.of(tx.get_one(Account, caller.account_id)), scopes=sorted(caller.scopes))


@router.post("/api_keys", status_code=201)
def create_api_key(body: ApiKeyCreate, tx: Transaction, caller: KeyHolder) -> ApiKeyOut:
    scopes = check_scopes(body.scopes, caller.scopes)
    check_budget_scopes(scopes, body.budget_micros)
    expires_at = earliest_expiry(tx, caller.api_key_id, body.expiry())
    key, secret = create_key(tx, caller.account_id, body.name, scopes, expires_at, body.budget_micros)
    return ApiKeyOut.of(key, secret)


@router.get("/api_keys")
def read_api_keys(tx: Transaction, caller: KeyHolder) -> Page[ApiKeyOut]:
    keys = list_keys(tx, caller.account_id)
    return Page(data=[ApiKeyOut.of(key) for key in keys])


@router.delete("/api_keys/{key_id}")
def delete_api_key(key_id: str, tx: Transaction, caller: KeyHolder) -> Deleted:
    return Deleted(id=revoke_key(tx, caller.account_id, key_id).id, object="api_key")


@router.post("/sessions", status_code=201)
def sign_in(body: SessionCreate, tx: Transaction, request: Request, response: Response) -> AccountOut:
    with slowing_guesses(request, "sign-in"):
        token, session = open_session(tx, body.email, body.password)
    set_session_cookie(response, token)
    return AccountOut.of(tx.get_one(Account, session.account_id))


@router.delete("/sessions")
def sign_out(tx: Transaction, caller: CurrentCaller, request: Request, response: Response) -> Deleted:
    close_session(tx, request.cookies.get(SESSION_COOKIE, ""))
    response.delete_cookie(SESSION_COOKIE)
    return Deleted(id="current", object="session")


def set_session_cookie(response: Response, token: str) -> None:
    response.set_cookie(
        SESSION_COOKIE,
        token,
        max_age=int(LIFETIME.total_seconds()),
        httponly=True,
        samesite="lax",
        secure=get_settings().api.secure_cookies,
    )
