"""Reviews: by those who bought or called it, one each, editable."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from app.billing.metering import settle_call
from app.billing.purchase import buy
from app.catalog.tables import Listing
from app.database import transaction
from app.reviews.review import write_review
from tests.billing.calls import call_of, opened
from tests.conftest import Services, Signed
from tests.factories import new_account, new_listing, new_member

SignUp = Callable[..., Signed]


@pytest.fixture
def seller(services: Services) -> Signed:
    with transaction() as tx:
        return new_member(tx)


@pytest.fixture
def listing(seller: Signed) -> Listing:
    with transaction() as tx:
        return new_listing(tx, seller.account_id, access=10)


@pytest.fixture
def review(client: TestClient, seller: Signed, listing: Listing) -> Callable[..., Response]:
    def send(author: Signed, rating: object = 5, **changes: object) -> Response:
        path = f"/v1/listings/{seller.handle}/{listing.name}/reviews"
        return client.post(path, json={"rating": rating, "body": "Fine."} | changes, headers=author.headers)

    return send


Review = Callable[..., Response]


def bought(user: Signed, listing: Listing) -> None:
    with transaction() as tx:
        buy(tx, user.account_id, tx.get_one(Listing, listing.id), None)


def test_a_buyer_reviews_once_and_may_change_their_mind(
    client: TestClient, signed_up: SignUp, seller: Signed, listing: Listing, review: Review
) -> None:
    first, second = signed_up("first"), signed_up("second")
    for buyer in (first, second):
        bought(buyer, listing)
    written = review(first, 5)
    assert written.status_code == 201, written.text
    assert (written.json()["author"], written.json()["rating"]) == (first.handle, 5)
    review(second, 4)
    assert review(first, 1, body="It broke.").json()["id"] == written.json()["id"]
    shown = client.get(f"/v1/listings/{seller.handle}/{listing.name}").json()
    assert (shown["rating"], shown["reviews"]) == (2.5, 2)
    page = client.get(f"/v1/listings/{seller.handle}/{listing.name}/reviews?limit=1").json()
    assert ([row["author"] for row in page["data"]], page["has_more"]) == ([second.handle], True)
    rest = client.get(f"/v1/listings/{seller.handle}/{listing.name}/reviews?after={page['last_id']}").json()
    assert [(row["author"], row["body"]) for row in rest["data"]] == [(first.handle, "It broke.")]


def test_one_settled_call_is_enough_to_have_an_opinion(signed_up: SignUp, listing: Listing, review: Review) -> None:
    caller = signed_up("caller")
    with transaction() as tx:
        target = call_of(listing, input_price=50_000, output_price=150_000)
        call = opened(tx, caller.account_id, target, prompt=5, most=5)
    assert review(caller).status_code == 403
    with transaction() as tx:
        settle_call(tx, call, 1, 5, 5)
    assert review(caller).status_code == 201


def test_strangers_and_owners_do_not_review(signed_up: SignUp, seller: Signed, review: Review) -> None:
    for author in (signed_up("stranger"), seller):
        answer = review(author)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


@pytest.mark.parametrize("rating", [0, 6, -1, 4.5, "5", None, True, 2**63])
def test_a_rating_is_a_whole_number_from_1_to_5(listing: Listing, review: Review, rating: object) -> None:
    with transaction() as tx:
        buyer = new_member(tx)
    bought(buyer, listing)
    answer = review(buyer, rating)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    assert review(buyer, 3, body="x" * 4_001).status_code == 400
    assert review(buyer, 3, stars=3).json()["error"]["code"] == "unknown_parameter"


def test_a_review_edited_many_times_at_once_is_counted_once(listing: Listing) -> None:
    with transaction() as tx:
        buyer = new_account(tx, 1_000).id
        buy(tx, buyer, tx.get_one(Listing, listing.id), None)

    def write(number: int) -> None:
        with transaction() as tx:
            write_review(tx, buyer, tx.get_one(Listing, listing.id), 1 + number % 5, "")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(16)))
    with transaction() as tx:
        row = tx.get_one(Listing, listing.id)
        assert row.rating_count == 1
        assert 1 <= row.rating_sum <= 5
