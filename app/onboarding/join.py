"""Joining the store: a user, an account, its wallet and a first API key, in one transaction."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.accounts.api_keys import create_key
from app.accounts.rules import SCOPES
from app.accounts.sign_up import sign_up
from app.accounts.tables import Account, ApiKey, User
from app.billing.wallet import open_wallet


@dataclass(frozen=True)
class Joined:
    """`secret` is the whole key, shown once."""

    user: User
    account: Account
    api_key: ApiKey
    secret: str


def join(tx: Session, email: str, password: str, handle: str, display_name: str | None = None) -> Joined:
    """Raises InvalidValue for malformed input, AlreadyExists for a taken handle or e-mail."""
    user, account = sign_up(tx, email, password, handle, display_name)
    open_wallet(tx, account.id)
    key, secret = create_key(tx, account.id, "first key", sorted(SCOPES))
    return Joined(user, account, key, secret)
