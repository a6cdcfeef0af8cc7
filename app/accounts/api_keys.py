"""API keys: `gpts_<prefix>_<secret>`. The secret is shown once; its hash is stored and found by the prefix."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from app.accounts.tables import Account, ApiKey
from app.database import utc_now
from app.errors import NotFound
from app.ids import ALPHABET

PREFIX_LENGTH = 12
SECRET_BYTES = 32


# Columns, for every call asks: rows of the unit of work would take longer than the statement.
KEY = (
    select(ApiKey.id, ApiKey.account_id, ApiKey.secret_hash, ApiKey.scopes, ApiKey.expires_at, ApiKey.budget_micros)
    .add_columns(Account.handle)  # the typed `select` ends at a handful
    .join(Account, Account.id == ApiKey.account_id)
    .where(ApiKey.prefix == bindparam("prefix"), ApiKey.revoked_at.is_(None))
)


@dataclass(frozen=True)
class LiveKey:
    """A key that opens what its scopes say. `has_budget`: it may spend only so much."""

    id: str
    account_id: str
    handle: str
    scopes: frozenset[str]
    has_budget: bool


def create_key(
    tx: Session,
    account_id: str,
    name: str,
    scopes: list[str],
    expires_at: datetime | None = None,
    budget_micros: int | None = None,
) -> tuple[ApiKey, str]:
    """The row and the whole key, which nobody can read again."""
    prefix = "".join(secrets.choice(ALPHABET) for _ in range(PREFIX_LENGTH))
    whole = f"gpts_{prefix}_{secrets.token_urlsafe(SECRET_BYTES)}"
    key = ApiKey(
        account_id=account_id,
        name=name,
        prefix=prefix,
        secret_hash=fingerprint(whole),
        scopes=scopes,
        expires_at=expires_at,
        budget_micros=budget_micros,
    )
    tx.add(key)
    tx.flush()
    return key, whole


def earliest_expiry(tx: Session, maker_id: str | None, wanted: datetime | None) -> datetime | None:
    """No key outlives the key that made it."""
    maker = tx.get(ApiKey, maker_id) if maker_id else None
    moments = [moment for moment in (wanted, maker.expires_at if maker else None) if moment is not None]
    return min(moments, default=None)


def fingerprint(secret: str) -> str:
    """SHA-256 is enough: the secret has 256 random bits, so there is nothing to guess."""
    return hashlib.sha256(secret.encode()).hexdigest()


def find_key(tx: Session, whole: str) -> LiveKey | None:
    """The live key with this secret, compared in constant time; None: unknown, revoked or expired."""
    parts = whole.split("_", 2)
    if len(parts) != 3 or parts[0] != "gpts" or not whole.isascii():
        return None
    row = tx.execute(KEY, {"prefix": parts[1]}).one_or_none()
    if row is None or not hmac.compare_digest(row.secret_hash, fingerprint(whole)):
        return None
    if row.expires_at is not None and row.expires_at <= utc_now():
        return None
    return LiveKey(row.id, row.account_id, row.handle, frozenset(row.scopes), row.budget_micros is not None)


def list_keys(tx: Session, account_id: str) -> list[ApiKey]:
    return list(
        tx.scalars(
            select(ApiKey)
            .where(ApiKey.account_id == account_id, ApiKey.revoked_at.is_(None))
            .order_by(ApiKey.id.desc())
        )
    )


def revoke_key(tx: Session, account_id: str, key_id: str) -> ApiKey:
    """From the commit on, the key opens nothing."""
    key = tx.get(ApiKey, key_id)
    if key is None or key.account_id != account_id:
        raise NotFound("No such API key.")
    key.revoked_at = key.revoked_at or utc_now()
    return key
