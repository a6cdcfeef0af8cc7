"""Signed-in browsers: a random token in a cookie, its hash in Postgres."""

import secrets
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.api_keys import fingerprint
from app.accounts.passwords import decoy_hash, password_matches
from app.accounts.tables import Membership, User, WebSession
from app.database import utc_now
from app.errors import InvalidCredentials

LIFETIME = timedelta(days=14)


def open_session(tx: Session, email: str, password: str) -> tuple[str, WebSession]:
    """The cookie's token and its row. Raises InvalidCredentials, the same for either being wrong."""
    user = tx.scalar(select(User).where(User.email == email.strip().lower()))
    if not password_matches(user.password_hash if user else decoy_hash(), password) or user is None:
        raise InvalidCredentials("That e-mail and password do not belong together.")
    account_id = tx.scalar(select(Membership.account_id).where(Membership.user_id == user.id).limit(1))
    return start_session(tx, user.id, account_id or "")


def start_session(tx: Session, user_id: str, account_id: str) -> tuple[str, WebSession]:
    token = secrets.token_urlsafe(32)
    session = WebSession(
        token_hash=fingerprint(token), user_id=user_id, account_id=account_id, expires_at=utc_now() + LIFETIME
    )
    tx.add(session)
    tx.flush()
    return token, session


def find_session(tx: Session, token: str) -> WebSession | None:
    session = tx.scalar(select(WebSession).where(WebSession.token_hash == fingerprint(token)))
    return session if session and session.expires_at > utc_now() else None


def close_session(tx: Session, token: str) -> None:
    session = tx.scalar(select(WebSession).where(WebSession.token_hash == fingerprint(token)))
    if session:
        tx.delete(session)


def close_all_sessions(tx: Session, user_id: str) -> None:
    """After a new password, every browser signs in again."""
    for session in tx.scalars(select(WebSession).where(WebSession.user_id == user_id)):
        tx.delete(session)
