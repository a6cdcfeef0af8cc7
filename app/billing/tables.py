"""Money, in integer micros (1,000,000 = 1 USD): wallets, the double-entry ledger and what caused its transfers."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, utc_now
from app.ids import new_id


class Wallet(Base):
    """Cached balances of a buyer, kept equal to the sums of their postings."""

    __tablename__ = "wallets"
    __table_args__ = (
        CheckConstraint("available_micros >= 0", name="available_not_negative"),
        CheckConstraint("held_micros >= 0", name="held_not_negative"),
    )
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    available_micros: Mapped[int] = mapped_column(default=0)
    held_micros: Mapped[int] = mapped_column(default=0)


class LedgerTransfer(Base):
    """Why money moved. `kind` and `reference` (the id of a purchase, generation, job, top-up) occur once together."""

    __tablename__ = "ledger_transfers"
    __table_args__ = (UniqueConstraint("kind", "reference"),)
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("xfer"))
    kind: Mapped[str]
    reference: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class LedgerPosting(Base):
    """One line of a transfer; those of one transfer sum to 0 and are written by one statement, which a trigger
    refuses otherwise. Never updated or deleted.

    `ledger_account`: `wallet:<acct>:available`, `wallet:<acct>:held`, `seller:<acct>`, `platform:revenue`,
    `platform:promotions`, `clearing:<gateway>`. `balance_after` only on wallet postings.
    """

    __tablename__ = "ledger_postings"
    __table_args__ = (Index("ix_ledger_postings_ledger_account_id", "ledger_account", "id"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    transfer_id: Mapped[str] = mapped_column(ForeignKey("ledger_transfers.id"), index=True)
    ledger_account: Mapped[str]
    amount_micros: Mapped[int]
    balance_after: Mapped[int | None]


class Purchase(Base):
    __tablename__ = "purchases"
    __table_args__ = (UniqueConstraint("account_id", "listing_id"),)
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("pur"))
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    listing_id: Mapped[str] = mapped_column(ForeignKey("listings.id"), index=True)
    price_id: Mapped[str] = mapped_column(ForeignKey("prices.id"))
    amount_micros: Mapped[int]
    fee_micros: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Entitlement(Base):
    """The right to call a listing, bought or granted; delisting never removes it."""

    __tablename__ = "entitlements"
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    listing_id: Mapped[str] = mapped_column(ForeignKey("listings.id"), primary_key=True)
    purchase_id: Mapped[str | None] = mapped_column(ForeignKey("purchases.id"))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class TopUp(Base):
    """`status`: pending → succeeded | failed."""

    __tablename__ = "top_ups"
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("topup"))
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), index=True)
    gateway: Mapped[str]
    amount_micros: Mapped[int]
    status: Mapped[str] = mapped_column(default="pending")
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Generation(Base):
    """One metered call: identity, price, hold, state; never a prompt.

    `state`: held → settled | released. `attempt` grows when the relay resubmits; only the current attempt settles.
    The price columns are those in force at admission (micros per million tokens).
    """

    __tablename__ = "generations"
    __table_args__ = (
        Index("ix_generations_open_lease", "lease_expires_at", postgresql_where="state = 'held'"),
        Index("ix_generations_account_id_id", "account_id", "id"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    api_key_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"))
    model: Mapped[str]
    base_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    seller_account_id: Mapped[str | None] = mapped_column(ForeignKey("accounts.id"))
    listing_id: Mapped[str | None] = mapped_column(ForeignKey("listings.id"))
    version_number: Mapped[int | None]
    input_micros_per_million_tokens: Mapped[int]
    output_micros_per_million_tokens: Mapped[int]
    base_input_micros_per_million_tokens: Mapped[int]
    base_output_micros_per_million_tokens: Mapped[int]
    state: Mapped[str] = mapped_column(default="held")
    attempt: Mapped[int] = mapped_column(default=1)
    held_micros: Mapped[int]
    charge_micros: Mapped[int | None]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int | None]
    lease_expires_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
