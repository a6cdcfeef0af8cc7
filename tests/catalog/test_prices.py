"""Prices: immutable rows, in force from their moment on."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.catalog.prices import list_prices, price_in_force, set_price
from app.catalog.schemas import PricesIn
from app.database import transaction, utc_now
from app.errors import PriceBelowBase
from tests.conftest import Signed
from tests.factories import new_account, new_listing


def prices(access: int, output: int = 150_000) -> PricesIn:
    return PricesIn(
        access_micros=access, input_micros_per_million_tokens=50_000, output_micros_per_million_tokens=output
    )


def test_the_price_in_force_is_the_latest_whose_moment_has_come(tx: Session) -> None:
    listing, now = new_listing(tx, new_account(tx).id, access=100), utc_now()
    set_price(tx, listing, prices(300), now + timedelta(hours=2))
    set_price(tx, listing, prices(200))
    assert price_in_force(tx, listing.id).access_micros == 200
    assert price_in_force(tx, listing.id, now).access_micros == 100
    assert price_in_force(tx, listing.id, now + timedelta(hours=3)).access_micros == 300
    assert [price.access_micros for price in list_prices(tx, listing.id)] == [300, 200, 100]


def test_a_token_price_below_the_bases_is_refused(tx: Session) -> None:
    listing = new_listing(tx, new_account(tx).id)
    with pytest.raises(PriceBelowBase):
        set_price(tx, listing, prices(0, output=149_999))


def test_prices_by_their_doors(client: TestClient, signed_up: Callable[..., Signed]) -> None:
    seller = signed_up("seller")
    with transaction() as tx:
        listing = new_listing(tx, seller.account_id, access=100)
    address = f"/v1/listings/{seller.handle}/{listing.name}"
    body = prices(700).model_dump()
    created = client.post(f"{address}/prices", json=body, headers=seller.headers)
    assert created.status_code == 201, created.text
    assert client.get(address).json()["prices"] == created.json()
    assert [row["access_micros"] for row in client.get(f"{address}/prices").json()["data"]] == [700, 100]
    past = client.post(f"{address}/prices", json=body | {"effective_at": 1}, headers=seller.headers)
    assert past.json()["error"]["param"] == "effective_at"
    foreign = client.post(f"{address}/prices", json=body, headers=signed_up("stranger").headers)
    assert foreign.status_code == 404
