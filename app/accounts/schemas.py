"""Accounts, keys and sessions on the wire."""

from datetime import UTC, datetime
from typing import Self

from pydantic import BaseModel, Field

from app.accounts.tables import Account, ApiKey
from app.errors import InvalidValue
from app.visible import Title
from app.wire import Strict, unix


class AccountCreate(Strict):
    email: str = Field(max_length=254)
    password: str = Field(max_length=256)
    handle: str = Field(max_length=40)
    display_name: Title | None = Field(default=None, min_length=1, max_length=80)


class AccountOut(BaseModel):
    id: str
    object: str = "account"
    handle: str
    display_name: str
    created_at: int

    @classmethod
    def of(cls, account: Account) -> Self:
        return cls(
            id=account.id, handle=account.handle, display_name=account.display_name, created_at=unix(account.created_at)
        )


class ApiKeyCreate(Strict):
    name: Title = Field(min_length=1, max_length=80)
    scopes: list[str] = Field(max_length=20)
    expires_at: int | None = Field(default=None, ge=0, le=253_402_300_799)
    budget_micros: int | None = Field(default=None, gt=0, le=10**15)

    def expiry(self) -> datetime | None:
        if self.expires_at is None:
            return None
        moment = datetime.fromtimestamp(self.expires_at, UTC)
        if moment <= datetime.now(UTC):
            raise InvalidValue("expires_at lies in the past.", param="expires_at")
        return moment


class ApiKeyOut(BaseModel):
    """`secret` is present only in the answer to its creation."""

    id: str
    object: str = "api_key"
    name: str
    prefix: str
    scopes: list[str]
    created_at: int
    expires_at: int | None
    budget_micros: int | None
    secret: str | None = None

    @classmethod
    def of(cls, key: ApiKey, secret: str | None = None) -> Self:
        return cls(
            id=key.id,
            name=key.name,
            prefix=f"gpts_{key.prefix}",
            scopes=key.scopes,
            created_at=unix(key.created_at),
            expires_at=unix(key.expires_at) if key.expires_at else None,
            budget_micros=key.budget_micros,
            secret=secret,
        )


class Me(BaseModel):
    account: AccountOut
    scopes: list[str]


class SessionCreate(Strict):
    email: str = Field(max_length=254)
    password: str = Field(max_length=256)


class Deleted(BaseModel):
    id: str
    object: str
    deleted: bool = True
