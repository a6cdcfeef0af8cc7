"""Rows that many tests need, made by the store's own use cases where there is one."""

import secrets
from typing import Any

from sqlalchemy.orm import Session

from app.accounts.api_keys import create_key
from app.accounts.rules import SCOPES
from app.accounts.tables import Account
from app.billing.ledger import PROMOTIONS, Posting, available, post
from app.billing.wallet import open_wallet, read_wallet
from app.catalog.check import finish_check
from app.catalog.find import latest_version
from app.catalog.publish import create_listing
from app.catalog.schemas import ListingCreate
from app.catalog.tables import Listing
from app.variants.rules import model_name
from app.variants.tables import BaseModel, Variant
from tests.conftest import Signed


def new_base(tx: Session, *, input_price: int = 50_000, output_price: int = 150_000) -> BaseModel:
    """A ready base without weights: enough for whatever does not run it."""
    base = BaseModel(
        id=f"paper-{secrets.token_hex(4)}",
        source="none",
        status="ready",
        digest=secrets.token_hex(32),
        context_length=2048,
        shape={"layers": 1, "hidden_size": 8, "vocabulary": 64, "linears": {}},
        input_micros_per_million_tokens=input_price,
        output_micros_per_million_tokens=output_price,
        training_micros_per_million_tokens=500_000,
    )
    tx.add(base)
    tx.flush()
    return base


def new_account(tx: Session, available_micros: int = 0) -> Account:
    """An account that nobody can sign in to, with exactly this much in its wallet."""
    handle = f"acct-{secrets.token_hex(6)}"
    account = Account(handle=handle, display_name=handle)
    tx.add(account)
    tx.flush()
    open_wallet(tx, account.id)
    change = available_micros - read_wallet(tx, account.id).available_micros
    post(tx, "test_funds", account.id, [Posting(available(account.id), change), Posting(PROMOTIONS, -change)])
    return account


def new_member(tx: Session, available_micros: int = 5_000_000) -> Signed:
    """An account with a key for everything and no password: hashing one costs a tenth of a second."""
    account = new_account(tx, available_micros)
    _, secret = create_key(tx, account.id, "test", sorted(SCOPES))
    return Signed(account.id, account.handle, "", secret)


def new_variant(tx: Session, account_id: str, base_id: str | None = None) -> Variant:
    base_id = base_id or new_base(tx).id
    handle = tx.get_one(Account, account_id).handle
    variant = Variant(
        account_id=account_id,
        base_id=base_id,
        model=model_name(base_id, handle, "", secrets.token_hex(8)),
        origin="upload",
        digest=secrets.token_hex(32),
        rank=4,
        parameters=64,
        bytes=256,
    )
    tx.add(variant)
    tx.flush()
    return variant


def listing_body(model: str, *, access: int = 2_000_000, **changes: Any) -> dict[str, Any]:
    """What a client posts to /v1/listings; the token prices are those of `new_base`."""
    prices = {
        "access_micros": access,
        "input_micros_per_million_tokens": 50_000,
        "output_micros_per_million_tokens": 150_000,
    }
    body: dict[str, Any] = {
        "name": f"bot-{secrets.token_hex(4)}",
        "title": "A bot",
        "summary": "It answers questions.",
        "model": model,
        "prices": prices,
    }
    return body | changes


def new_listing(tx: Session, account_id: str, *, published: bool = True, **changes: Any) -> Listing:
    """On sale, unless `published` is False: then its first version is still under check."""
    body = listing_body(new_variant(tx, account_id).model, **changes)
    listing = create_listing(tx, account_id, ListingCreate.model_validate(body))
    if published:
        finish_check(tx, latest_version(tx, listing.id).id, [])
        tx.refresh(listing)
    return listing
