"""Purchases, the wallet, usage and earnings."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from app.accounts.authenticate import Caller
from app.billing.purchase import buy, find_purchase, list_purchases
from app.billing.schemas import (
    EarningsOut,
    EntryOut,
    PurchaseCreate,
    PurchaseOut,
    TopUpCreate,
    TopUpOut,
    UsageOut,
    WalletOut,
)
from app.billing.top_up import top_up
from app.billing.usage import GroupBy, earnings, usage_by
from app.billing.wallet import read_wallet, wallet_entries
from app.catalog.find import find_listing, listing_addresses
from app.dependencies import Transaction, requires
from app.errors import InvalidCursor
from app.idempotency import idempotent
from app.wire import Limit, Page, check_cursor, page_of

router = APIRouter(prefix="/v1", tags=["billing"])
Buyer = Annotated[Caller, Depends(requires("purchases"))]
Holder = Annotated[Caller, Depends(requires("wallet"))]


@router.post("/purchases", status_code=201, response_model=PurchaseOut)
def create_purchase(body: PurchaseCreate, tx: Transaction, caller: Buyer, request: Request) -> Response:
    def effect() -> PurchaseOut:
        handle, _, name = body.listing.partition("/")
        listing = find_listing(tx, handle, name, caller.account_id)
        return PurchaseOut.of(buy(tx, caller.account_id, listing, body.expected_price_micros), body.listing)

    return idempotent(tx, request, caller, body, 201, effect)


@router.get("/purchases")
def read_purchases(tx: Transaction, caller: Buyer, limit: Limit = 20, after: str | None = None) -> Page[PurchaseOut]:
    rows = list_purchases(tx, caller.account_id, check_cursor(after, "pur"), limit)
    addresses = listing_addresses(tx, [row.listing_id for row in rows])
    shown = [PurchaseOut.of(row, addresses[row.listing_id]) for row in rows]
    return page_of(shown, [row.id for row in rows], limit)


@router.get("/purchases/{purchase_id}")
def read_purchase(purchase_id: str, tx: Transaction, caller: Buyer) -> PurchaseOut:
    row = find_purchase(tx, caller.account_id, purchase_id)
    return PurchaseOut.of(row, listing_addresses(tx, [row.listing_id])[row.listing_id])


@router.get("/wallet")
def read_own_wallet(tx: Transaction, caller: Holder) -> WalletOut:
    return WalletOut.of(read_wallet(tx, caller.account_id))


@router.get("/wallet/entries")
def read_entries(tx: Transaction, caller: Holder, limit: Limit = 20, after: str | None = None) -> Page[EntryOut]:
    """Newest first."""
    if after is not None and not (after.isascii() and after.isdecimal() and len(after) <= 18):
        raise InvalidCursor("That cursor is not an id of this list.", param="after")
    rows = wallet_entries(tx, caller.account_id, None if after is None else int(after), limit)
    return page_of([EntryOut.of(*row) for row in rows], [str(row[0].id) for row in rows], limit)


@router.post("/wallet/top_ups", status_code=201, response_model=TopUpOut)
def create_top_up(body: TopUpCreate, tx: Transaction, caller: Holder, request: Request) -> Response:
    def effect() -> TopUpOut:
        return TopUpOut.of(top_up(tx, caller.account_id, body.amount_micros, body.gateway))

    return idempotent(tx, request, caller, body, 201, effect)


@router.get("/usage")
def read_usage(tx: Transaction, caller: Holder, group_by: Annotated[GroupBy, Query()] = "day") -> Page[UsageOut]:
    rows = usage_by(tx, caller.account_id, group_by)
    names = ("group", "calls", "prompt_tokens", "completion_tokens", "charge_micros")
    return Page(data=[UsageOut.model_validate(dict(zip(names, row, strict=True))) for row in rows])


@router.get("/earnings")
def read_earnings(tx: Transaction, caller: Holder) -> EarningsOut:
    total, by_kind = earnings(tx, caller.account_id)
    return EarningsOut(balance_micros=total, by_kind=by_kind)
