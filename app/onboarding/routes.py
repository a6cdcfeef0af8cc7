"""POST /v1/accounts: the only door that needs no key."""

from fastapi import APIRouter, Request
from pydantic import BaseModel

from app.accounts.schemas import AccountCreate, AccountOut, ApiKeyOut
from app.dependencies import Transaction, slowing_guesses
from app.onboarding.join import join

router = APIRouter(prefix="/v1", tags=["accounts"])


class JoinedOut(BaseModel):
    account: AccountOut
    api_key: ApiKeyOut


@router.post("/accounts", status_code=201)
def create_account(body: AccountCreate, tx: Transaction, request: Request) -> JoinedOut:
    """Failed attempts are throttled: each costs a password hash, and tells whether an e-mail is known."""
    with slowing_guesses(request, "sign-up"):
        joined = join(tx, body.email, body.password, body.handle, body.display_name)
    return JoinedOut(account=AccountOut.of(joined.account), api_key=ApiKeyOut.of(joined.api_key, joined.secret))
