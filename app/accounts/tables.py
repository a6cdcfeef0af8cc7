"""Who is who: a user (person) belongs to an account (tenant) through a membership."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, utc_now
from app.ids import new_id


class User(Base):
    """A person who signs in. `email` is stored in lower case."""

    __tablename__ = "users"
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("user"))
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    is_operator: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Account(Base):
    """The tenant: owns files, models, listings, a wallet."""

    __tablename__ = "accounts"
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("acct"))
    handle: Mapped[str] = mapped_column(unique=True)
    display_name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Membership(Base):
    __tablename__ = "memberships"
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), primary_key=True, index=True)
    role: Mapped[str] = mapped_column(default="owner")


class ApiKey(Base):
    """A secret of 256 random bits, kept as its SHA-256 and found by its prefix."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("key"))
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), index=True)
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    secret_hash: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    budget_micros: Mapped[int | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class WebSession(Base):
    """A signed-in browser; the cookie's token is kept as its SHA-256."""

    __tablename__ = "web_sessions"
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("sess"))
    token_hash: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    expires_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class AuditEntry(Base):
    """What an operator did, to what, when. `operator` is a user id, or `cli` for the command line."""

    __tablename__ = "audit_entries"
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("audit"))
    operator: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
