"""Who is asking: an API key or a browser session becomes a Caller."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.accounts.api_keys import find_key
from app.accounts.rules import SCOPES
from app.accounts.sessions import find_session
from app.accounts.tables import Account
from app.errors import InsufficientScope, Unauthorized


@dataclass(frozen=True)
class Caller:
    """The tenant behind a request and what it may do. `has_budget`: its key may spend only so much."""

    account_id: str
    handle: str
    scopes: frozenset[str]
    api_key_id: str | None = None
    user_id: str | None = None
    has_budget: bool = False

    def require(self, scope: str) -> None:
        if scope not in self.scopes:
            raise InsufficientScope(f"This key lacks the scope '{scope}'.")


def caller_by_key(tx: Session, secret: str) -> Caller:
    key = find_key(tx, secret)
    if key is None:
        raise Unauthorized("Incorrect API key provided.")
    return Caller(key.account_id, key.handle, key.scopes, api_key_id=key.id, has_budget=key.has_budget)


def caller_by_session(tx: Session, token: str) -> Caller:
    session = find_session(tx, token)
    account = tx.get(Account, session.account_id) if session else None
    if session is None or account is None:
        raise Unauthorized("You are not signed in.")
    return Caller(account.id, account.handle, SCOPES, user_id=session.user_id)
