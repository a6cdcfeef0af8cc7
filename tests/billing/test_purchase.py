"""Buying: one transfer, one entitlement; every refusal leaves the money where it was."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from app.billing.ledger import verify
from app.billing.purchase import buy, is_entitled
from app.billing.wallet import read_wallet
from app.catalog.find import find_listing
from app.catalog.prices import set_price
from app.catalog.publish import delist
from app.catalog.schemas import PricesIn
from app.catalog.tables import Listing
from app.database import transaction
from app.errors import AlreadyPurchased, AppError, InsufficientFunds
from app.ids import new_id
from tests.conftest import Services, Signed
from tests.factories import new_account, new_listing

SignUp = Callable[..., Signed]
PRICE = 2_000_000


@pytest.fixture
def seller(signed_up: SignUp) -> Signed:
    return signed_up("seller")


@pytest.fixture
def listing(seller: Signed) -> Listing:
    with transaction() as tx:
        return new_listing(tx, seller.account_id, access=PRICE)


def purchase(client: TestClient, buyer: Signed, seller: Signed, sold: Listing, **changes: object) -> Response:
    body = {"listing": f"{seller.handle}/{sold.name}", "plan": "access", "expected_price_micros": PRICE}
    return client.post("/v1/purchases", json=body | changes, headers=buyer.headers)


def refusal(answer: Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def available(client: TestClient, user: Signed) -> int:
    return int(client.get("/v1/wallet", headers=user.headers).json()["available_micros"])


def test_a_purchase_pays_the_seller_less_the_fee_and_entitles_the_buyer(
    client: TestClient, signed_up: SignUp, seller: Signed, listing: Listing
) -> None:
    buyer = signed_up("buyer")
    before = available(client, buyer)
    answer = purchase(client, buyer, seller, listing)
    assert answer.status_code == 201, answer.text
    bought = answer.json()
    assert (bought["amount_micros"], bought["fee_micros"]) == (PRICE, 200_000)
    assert available(client, buyer) == before - PRICE
    earnings = client.get("/v1/earnings", headers=seller.headers).json()
    assert (earnings["balance_micros"], earnings["by_kind"]) == (1_800_000, {"purchase": 1_800_000})
    assert client.get("/v1/purchases", headers=buyer.headers).json()["data"] == [bought]
    assert client.get(f"/v1/purchases/{bought['id']}", headers=buyer.headers).json() == bought
    assert client.get(f"/v1/listings/{bought['listing']}").json()["sales"] == 1
    with transaction() as tx:
        assert verify(tx) == []
        assert is_entitled(tx, buyer.account_id, listing)


def test_refusals_leave_the_money_where_it_was(
    client: TestClient, signed_up: SignUp, seller: Signed, listing: Listing
) -> None:
    buyer = signed_up("buyer")
    with transaction() as tx:
        dear = new_listing(tx, seller.account_id, access=10**9)
        gone = delist(tx, new_listing(tx, seller.account_id, access=PRICE))
        hidden = new_listing(tx, seller.account_id, access=PRICE, visibility="private")
        unchecked = new_listing(tx, seller.account_id, access=PRICE, published=False)
    before = available(client, buyer), available(client, seller)
    assert refusal(purchase(client, buyer, seller, listing, expected_price_micros=1)) == (409, "price_changed")
    assert refusal(purchase(client, buyer, seller, dear, expected_price_micros=10**9)) == (402, "insufficient_funds")
    assert refusal(purchase(client, buyer, seller, gone)) == (409, "listing_unavailable")
    assert refusal(purchase(client, buyer, seller, hidden)) == (404, "not_found")
    assert refusal(purchase(client, buyer, seller, unchecked)) == (404, "not_found")
    assert refusal(purchase(client, seller, seller, listing)) == (409, "listing_unavailable")
    for listed in ("nobody/nothing", "nothing", "", "/", "a/b/c"):
        assert refusal(purchase(client, buyer, seller, listing, listing=listed)) == (404, "not_found")
    for body in ({"plan": "subscription"}, {"coupon": "FREE"}, {"expected_price_micros": 2**63}):
        assert refusal(purchase(client, buyer, seller, listing, **body)) == (400, "invalid_value")
    assert refusal(purchase(client, buyer, seller, listing, price=1)) == (400, "unknown_parameter")
    assert (available(client, buyer), available(client, seller)) == before


def test_a_second_purchase_is_refused_even_after_the_price_changed(
    client: TestClient, signed_up: SignUp, seller: Signed, listing: Listing
) -> None:
    buyer = signed_up("buyer")
    assert purchase(client, buyer, seller, listing).status_code == 201
    dearer = PricesIn(
        access_micros=3 * PRICE, input_micros_per_million_tokens=50_000, output_micros_per_million_tokens=150_000
    )
    with transaction() as tx:
        set_price(tx, find_listing(tx, seller.handle, listing.name, None), dearer)
    again = purchase(client, buyer, seller, listing)
    assert refusal(again) == (409, "already_purchased")
    assert again.headers["x-should-retry"] == "false"


def test_delisting_never_removes_bought_access(signed_up: SignUp, services: Services) -> None:
    with transaction() as tx:
        seller, buyer, late = new_account(tx), new_account(tx, PRICE), new_account(tx)
        listing = new_listing(tx, seller.id, access=PRICE)
        free = new_listing(tx, seller.id, access=0)
        buy(tx, buyer.id, listing, PRICE)
        assert is_entitled(tx, late.id, free)
        assert not is_entitled(tx, late.id, listing)
        delist(tx, listing)
        delist(tx, free)
        assert is_entitled(tx, buyer.id, listing)
        assert is_entitled(tx, seller.id, listing)
        assert not is_entitled(tx, late.id, free)


def test_what_was_sold_cannot_be_hidden_from_its_buyers(
    client: TestClient, signed_up: SignUp, seller: Signed, listing: Listing
) -> None:
    assert purchase(client, signed_up("buyer"), seller, listing).status_code == 201
    address = f"/v1/listings/{seller.handle}/{listing.name}"
    assert refusal(client.patch(address, json={"visibility": "private"}, headers=seller.headers)) == (409, "in_use")
    assert client.patch(address, json={"visibility": "unlisted"}, headers=seller.headers).status_code == 200


def test_a_foreign_purchase_and_an_unknown_one_read_the_same(
    client: TestClient, signed_up: SignUp, seller: Signed, listing: Listing
) -> None:
    bought = purchase(client, signed_up("buyer"), seller, listing).json()
    stranger = signed_up("stranger")
    foreign = client.get(f"/v1/purchases/{bought['id']}", headers=stranger.headers)
    unknown = client.get(f"/v1/purchases/{new_id('pur')}", headers=stranger.headers)
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.json() == unknown.json()


def test_a_wallet_for_exactly_eight_purchases_pays_for_eight_of_sixteen_simultaneous_ones(services: Services) -> None:
    with transaction() as tx:
        seller, buyer = new_account(tx).id, new_account(tx, 8 * PRICE).id
        listings = [new_listing(tx, seller, access=PRICE) for _ in range(16)]

    def attempt(listing: Listing) -> bool:
        try:
            with transaction() as tx:
                buy(tx, buyer, tx.get_one(Listing, listing.id), PRICE)
        except InsufficientFunds:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(attempt, listings))
    assert outcomes.count(True) == 8
    with transaction() as tx:
        assert verify(tx) == []
        assert read_wallet(tx, buyer).available_micros == 0


def test_the_same_purchase_sent_at_once_from_many_places_is_made_once(services: Services) -> None:
    with transaction() as tx:
        buyer = new_account(tx, 8 * PRICE).id
        listing = new_listing(tx, new_account(tx).id, access=PRICE)

    def attempt(_: int) -> type[AppError] | None:
        try:
            with transaction() as tx:
                buy(tx, buyer, tx.get_one(Listing, listing.id), PRICE)
        except AppError as error:
            return type(error)
        return None

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(8)))
    assert outcomes.count(None) == 1
    assert outcomes.count(AlreadyPurchased) == 7
    with transaction() as tx:
        assert read_wallet(tx, buyer).available_micros == 7 * PRICE
        assert tx.get_one(Listing, listing.id).sales_count == 1
