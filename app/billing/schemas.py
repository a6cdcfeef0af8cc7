"""Wallets, purchases, usage on the wire; all amounts in micros."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from app.billing.tables import LedgerPosting, LedgerTransfer, Purchase, TopUp, Wallet
from app.wire import Strict, unix


class PurchaseCreate(Strict):
    listing: str = Field(max_length=130)
    plan: Literal["access"] = "access"
    coupon: None = None
    expected_price_micros: int | None = Field(default=None, ge=0, lt=2**63)


class PurchaseOut(BaseModel):
    id: str
    object: str = "purchase"
    listing: str
    plan: str = "access"
    amount_micros: int
    fee_micros: int
    created_at: int

    @classmethod
    def of(cls, purchase: Purchase, listing: str) -> Self:
        return cls(
            id=purchase.id,
            listing=listing,
            amount_micros=purchase.amount_micros,
            fee_micros=purchase.fee_micros,
            created_at=unix(purchase.created_at),
        )


class WalletOut(BaseModel):
    object: str = "wallet"
    available_micros: int
    held_micros: int
    currency: str = "usd"

    @classmethod
    def of(cls, wallet: Wallet) -> Self:
        return cls(available_micros=wallet.available_micros, held_micros=wallet.held_micros)


class EntryOut(BaseModel):
    """One posting on the wallet: `side` is available or held; `kind` and `reference` say why."""

    id: str
    object: str = "wallet.entry"
    kind: str
    reference: str
    side: str
    amount_micros: int
    balance_after: int
    created_at: int

    @classmethod
    def of(cls, posting: LedgerPosting, transfer: LedgerTransfer) -> Self:
        return cls(
            id=str(posting.id),
            kind=transfer.kind,
            reference=transfer.reference,
            side=posting.ledger_account.rpartition(":")[2],
            amount_micros=posting.amount_micros,
            balance_after=posting.balance_after or 0,
            created_at=unix(transfer.created_at),
        )


class TopUpCreate(Strict):
    """`amount_micros` is checked by the use case, so that every bad amount gets one answer."""

    amount_micros: Any
    gateway: str = Field(default="sandbox", max_length=40)


class TopUpOut(BaseModel):
    id: str
    object: str = "top_up"
    amount_micros: int
    gateway: str
    status: str
    checkout_url: str | None = None
    created_at: int

    @classmethod
    def of(cls, entry: TopUp) -> Self:
        return cls(
            id=entry.id,
            amount_micros=entry.amount_micros,
            gateway=entry.gateway,
            status=entry.status,
            created_at=unix(entry.created_at),
        )


class UsageOut(BaseModel):
    group: str
    object: str = "usage"
    calls: int
    prompt_tokens: int
    completion_tokens: int
    charge_micros: int


class EarningsOut(BaseModel):
    """`balance_micros` is what the store owes; `by_kind` where it came from."""

    object: str = "earnings"
    balance_micros: int
    by_kind: dict[str, int]
    currency: str = "usd"
