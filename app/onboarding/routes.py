"""POST /v1/accounts: the only door that needs no key."""

from fastapi import APIRouter, Request
from pydantic import BaseModel

from app.accounts.schemas import AccountCreate, AccountOut, ApiKeyOut
from app.dependencies import Transaction, client_address, throttle
from app.errors import AppError
from app.onboarding.join import join

router = APIRouter(prefix="/v1", tags=["accounts"])


class JoinedOut(BaseModel):
    account: AccountOut
    api_key: ApiKeyOut


@router.post("/accounts", status_code=201)
def create_account(body: AccountCreate, tx: Transaction, request: Request) -> JoinedOut:
    """Failed attempts are throttled: each costs a password hash, and tells whether an e-mail is known."""
    name = f"{client_address(request)} sign-up"
    throttle().check(name)
    try:
        joined = join(tx, body.email, body.password, body.handle, body.display_name)
    except AppError:
        throttle().failed(name)
        raise
    return JoinedOut(account=AccountOut.of(joined.account), api_key=ApiKeyOut.of(joined.api_key, joined.secret))
