"""A password is reset by a signed link, good for an hour and for one use."""

from itsdangerous import BadData, URLSafeTimedSerializer
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.api_keys import fingerprint
from app.accounts.operators import audit
from app.accounts.passwords import hash_password
from app.accounts.rules import check_password
from app.accounts.sessions import close_all_sessions
from app.accounts.tables import User
from app.errors import InvalidSignature, NotFound

MAX_AGE_SECONDS = 3600


def signer(secret_key: str) -> URLSafeTimedSerializer:
    if not secret_key:
        raise RuntimeError("GPTSTORE_SECRET_KEY is not set")
    return URLSafeTimedSerializer(secret_key, salt="reset-password")


def reset_token(tx: Session, email: str, secret_key: str, operator: str) -> str:
    """Bound to today's password hash: once used, it opens nothing. Raises NotFound."""
    user = tx.scalar(select(User).where(User.email == email.strip().lower()))
    if user is None:
        raise NotFound("No user has that e-mail address.")
    audit(tx, operator, "accounts.reset_password", user.id)
    token: str = signer(secret_key).dumps([user.id, fingerprint(user.password_hash)])
    return token


def reset_password(tx: Session, token: str, password: str, secret_key: str) -> User:
    """Raises InvalidSignature for a forged, used or old link."""
    try:
        user_id, state = signer(secret_key).loads(token, max_age=MAX_AGE_SECONDS)
    except (BadData, ValueError) as error:
        raise InvalidSignature("This link is not valid any more.") from error
    user = tx.get(User, user_id, with_for_update=True)
    if user is None or state != fingerprint(user.password_hash):
        raise InvalidSignature("This link is not valid any more.")
    user.password_hash = hash_password(check_password(password))
    close_all_sessions(tx, user.id)
    return user
