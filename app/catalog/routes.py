"""Listings: browse, publish, change, delist; their versions and prices."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from app.accounts.authenticate import Caller
from app.catalog.find import (
    count_public,
    describe,
    find_listing,
    find_own_listing,
    list_versions,
)
from app.catalog.prices import list_prices, set_price
from app.catalog.publish import add_version, change_listing, create_listing, delist
from app.catalog.rules import CATEGORIES
from app.catalog.schemas import (
    Category,
    ListingChange,
    ListingCreate,
    ListingOut,
    ListingPage,
    PriceChange,
    PriceOut,
    VersionCreate,
    VersionOut,
)
from app.catalog.search import Search, Sort, search
from app.dependencies import Transaction, Viewer, requires
from app.idempotency import idempotent
from app.wire import Limit, Page

router = APIRouter(prefix="/v1", tags=["catalog"])
Seller = Annotated[Caller, Depends(requires("listings"))]
Text = Annotated[str, Query(max_length=200)]


@router.get("/listings")
def read_listings(
    tx: Transaction,
    q: Text = "",
    category: Text | None = None,
    tag: Text | None = None,
    base_model: Text | None = None,
    license: Text | None = None,
    price: Literal["free", "paid"] | None = None,
    handle: Text | None = None,
    sort: Sort | None = None,
    limit: Limit = 20,
    after: Annotated[str, Query(max_length=400)] | None = None,
) -> ListingPage:
    """What is on sale; no key needed."""
    wanted = Search(q.strip(), category, tag, base_model, license, price, handle, sort)
    return search(tx, wanted, limit, after)


@router.get("/categories")
def read_categories(tx: Transaction) -> Page[Category]:
    counts = count_public(tx)
    return Page(data=[Category(id=id, title=title, listings=counts.get(id, 0)) for id, title in CATEGORIES.items()])


@router.post("/listings", status_code=201, response_model=ListingOut)
def publish_listing(body: ListingCreate, tx: Transaction, caller: Seller, request: Request) -> Response:
    def effect() -> ListingOut:
        return describe(tx, create_listing(tx, caller.account_id, body), caller.account_id)

    return idempotent(tx, request, caller, body, 201, effect)


@router.get("/listings/{handle}/{name}")
def read_listing(handle: str, name: str, tx: Transaction, viewer: Viewer) -> ListingOut:
    account_id = viewer.account_id if viewer else None
    return describe(tx, find_listing(tx, handle, name, account_id), account_id)


@router.patch("/listings/{handle}/{name}")
def patch_listing(handle: str, name: str, body: ListingChange, tx: Transaction, caller: Seller) -> ListingOut:
    listing = change_listing(tx, find_own_listing(tx, handle, name, caller.account_id), body)
    return describe(tx, listing, caller.account_id)


@router.delete("/listings/{handle}/{name}")
def delist_listing(handle: str, name: str, tx: Transaction, caller: Seller) -> ListingOut:
    listing = delist(tx, find_own_listing(tx, handle, name, caller.account_id))
    return describe(tx, listing, caller.account_id)


@router.get("/listings/{handle}/{name}/versions")
def read_versions(handle: str, name: str, tx: Transaction, viewer: Viewer) -> Page[VersionOut]:
    account_id = viewer.account_id if viewer else None
    listing = find_listing(tx, handle, name, account_id)
    own = listing.account_id == account_id
    return Page(data=[VersionOut.of(each, f"{handle}/{name}", own) for each in list_versions(tx, listing, own)])


@router.post("/listings/{handle}/{name}/versions", status_code=201)
def create_version(handle: str, name: str, body: VersionCreate, tx: Transaction, caller: Seller) -> VersionOut:
    listing = find_own_listing(tx, handle, name, caller.account_id)
    return VersionOut.of(add_version(tx, listing, body), f"{handle}/{name}", True)


@router.get("/listings/{handle}/{name}/prices")
def read_prices(handle: str, name: str, tx: Transaction, viewer: Viewer) -> Page[PriceOut]:
    listing = find_listing(tx, handle, name, viewer.account_id if viewer else None)
    return Page(data=[PriceOut.of(price) for price in list_prices(tx, listing.id)])


@router.post("/listings/{handle}/{name}/prices", status_code=201, response_model=PriceOut)
def create_price(
    handle: str, name: str, body: PriceChange, tx: Transaction, caller: Seller, request: Request
) -> Response:
    listing = find_own_listing(tx, handle, name, caller.account_id)

    def effect() -> PriceOut:
        return PriceOut.of(set_price(tx, listing, body, body.moment()))

    return idempotent(tx, request, caller, body, 201, effect)
