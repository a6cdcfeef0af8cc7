"""Publishing: checked before it is called, immutable versions and prices, refusals with their reasons."""

import secrets
from collections.abc import Callable
from typing import Any

import pytest
from httpx2 import Response
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.catalog.check import finish_check
from app.catalog.find import latest_version, list_versions, published_version
from app.catalog.publish import add_version
from app.catalog.schemas import VersionCreate
from app.catalog.tables import ListingVersion
from app.database import transaction
from app.errors import NotFound
from app.variants.tables import Variant
from tests.conftest import Services, Signed
from tests.factories import listing_body, new_account, new_base, new_listing, new_member, new_variant

SignUp = Callable[..., Signed]


@pytest.fixture
def seller(services: Services) -> Signed:
    with transaction() as tx:
        return new_member(tx)


@pytest.fixture
def model(seller: Signed) -> str:
    with transaction() as tx:
        return new_variant(tx, seller.account_id).model


def publish(client: TestClient, seller: Signed, body: dict[str, Any]) -> Response:
    return client.post("/v1/listings", json=body, headers=seller.headers)


def refusal(answer: Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def latest(listing_id: str) -> ListingVersion:
    with transaction() as tx:
        return latest_version(tx, listing_id)


def test_a_listing_is_checked_before_anybody_else_sees_it(client: TestClient, seller: Signed, model: str) -> None:
    body = listing_body(model, system_prompt="You are kind.", starters=["Hello?"], examples=[{"input": "Hi"}])
    answer = publish(client, seller, body)
    assert answer.status_code == 201, answer.text
    created = answer.json()
    address = f"/v1/listings/{seller.handle}/{body['name']}"
    assert (created["object"], created["status"], created["version"]) == ("listing", "checking", None)
    assert created["model"] == f"{seller.handle}/{body['name']}"
    assert client.get(address).status_code == 404
    assert client.get(address, headers=seller.headers).json()["status"] == "checking"
    version = latest(created["id"])
    with transaction() as tx:
        assert finish_check(tx, version.id, [])
        assert not finish_check(tx, version.id, ["too late"])
    shown = client.get(address).json()
    assert (shown["status"], shown["version"], shown["system_prompt"]) == ("published", 1, None)
    assert client.get(address, headers=seller.headers).json()["system_prompt"] == "You are kind."


def test_a_rejected_version_says_why_to_its_owner_only(client: TestClient, seller: Signed, model: str) -> None:
    created = publish(client, seller, listing_body(model)).json()
    with transaction() as tx:
        assert finish_check(tx, latest_version(tx, created["id"]).id, ["it answers as its base does"])
    address = f"/v1/listings/{created['model']}"
    own = client.get(address, headers=seller.headers).json()
    assert (own["status"], own["reasons"]) == ("rejected", ["it answers as its base does"])
    assert client.get(address).status_code == 404


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": "../up"}, "invalid_value"),
        ({"name": "Two Words"}, "invalid_value"),
        ({"name": "x" * 64}, "invalid_value"),
        ({"title": ""}, "invalid_value"),
        ({"category": "weapons"}, "invalid_value"),
        ({"license": "mine"}, "invalid_value"),
        ({"tags": ["t" * 41]}, "invalid_value"),
        ({"tags": [f"t{number}" for number in range(11)]}, "invalid_value"),
        ({"visibility": "secret"}, "invalid_value"),
        ({"defaults": {"temperature": 2.1}}, "invalid_value"),
        ({"defaults": {"n": 2}}, "unknown_parameter"),
        ({"owner_id": "acct-x"}, "unknown_parameter"),
        ({"chat_template": "{{ x }}"}, "unknown_parameter"),
        ({"model": "ft:nobody:nothing::0"}, "model_not_found"),
        ({"model": "smollm2-135m-instruct"}, "model_not_found"),
    ],
)
def test_a_malformed_listing_is_refused(
    client: TestClient, seller: Signed, model: str, changes: dict[str, Any], code: str
) -> None:
    answer = publish(client, seller, listing_body(model) | changes)
    assert refusal(answer) == (404 if code == "model_not_found" else 400, code)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"access_micros": -1}, "invalid_value"),
        ({"access_micros": 0.5}, "invalid_value"),
        ({"access_micros": 2**63}, "invalid_value"),
        ({"input_micros_per_million_tokens": 49_999}, "price_below_base"),
        ({"output_micros_per_million_tokens": 149_999}, "price_below_base"),
        ({"subscription": {"monthly_micros": 1, "included_tokens": 1}}, "invalid_value"),
        ({"free_tokens": 5}, "invalid_value"),
    ],
)
def test_a_bad_price_is_refused(
    client: TestClient, seller: Signed, model: str, changes: dict[str, Any], code: str
) -> None:
    body = listing_body(model)
    answer = publish(client, seller, body | {"prices": body["prices"] | changes})
    assert refusal(answer) == (400, code)
    assert client.get(f"/v1/listings/{seller.handle}/{body['name']}", headers=seller.headers).status_code == 404


def test_a_foreign_or_deleted_model_cannot_be_published(
    client: TestClient, signed_up: SignUp, seller: Signed, model: str
) -> None:
    assert refusal(publish(client, signed_up("thief"), listing_body(model))) == (404, "model_not_found")
    assert client.delete(f"/v1/models/{model}", headers=seller.headers).status_code == 200
    assert refusal(publish(client, seller, listing_body(model))) == (404, "model_not_found")


def test_a_name_is_taken_once_per_seller(client: TestClient, signed_up: SignUp, seller: Signed, model: str) -> None:
    body = listing_body(model)
    assert publish(client, seller, body).status_code == 201
    again = publish(client, seller, body)
    assert (refusal(again), again.json()["error"]["param"]) == ((409, "already_exists"), "name")
    other = signed_up("other")
    with transaction() as tx:
        mine = new_variant(tx, other.account_id).model
    assert publish(client, other, body | {"model": mine}).status_code == 201


def test_the_published_version_serves_until_the_next_one_passes(services: Services, tx: Session) -> None:
    listing = new_listing(tx, new_account(tx).id)
    model = new_variant(tx, listing.account_id, listing.base_id).model
    second = add_version(tx, listing, VersionCreate(model=model))
    third = add_version(tx, listing, VersionCreate(model=model))
    assert published_version(tx, listing, None).number == 1
    with pytest.raises(NotFound):
        published_version(tx, listing, 2)
    finish_check(tx, third.id, [])
    finish_check(tx, second.id, [])
    tx.refresh(listing)
    assert published_version(tx, listing, None).number == 3
    assert published_version(tx, listing, 2).number == 2
    assert [version.number for version in list_versions(tx, listing, False)] == [3, 2, 1]


def test_versions_by_their_doors(client: TestClient, seller: Signed, services: Services) -> None:
    with transaction() as tx:
        listing = new_listing(tx, seller.account_id)
        same = new_variant(tx, seller.account_id, listing.base_id).model
        other = new_variant(tx, seller.account_id).model
    address = f"/v1/listings/{seller.handle}/{listing.name}/versions"
    created = client.post(address, json={"model": same}, headers=seller.headers)
    assert (created.status_code, created.json()["number"], created.json()["status"]) == (201, 2, "checking")
    assert refusal(client.post(address, json={"model": other}, headers=seller.headers)) == (400, "invalid_value")
    assert [version["number"] for version in client.get(address).json()["data"]] == [1]
    assert [version["number"] for version in client.get(address, headers=seller.headers).json()["data"]] == [2, 1]


def test_only_its_owner_changes_a_listing(client: TestClient, signed_up: SignUp, seller: Signed) -> None:
    with transaction() as tx:
        listing = new_listing(tx, seller.account_id)
    address, stranger = f"/v1/listings/{seller.handle}/{listing.name}", signed_up("stranger")
    body = {"title": "Better", "tags": ["New", "new"], "category": "coding"}
    foreign = [
        client.patch(address, json=body, headers=stranger.headers),
        client.delete(address, headers=stranger.headers),
        client.post(f"{address}/versions", json={"model": "ft:x"}, headers=stranger.headers),
    ]
    assert {refusal(answer) for answer in foreign} == {(404, "not_found")}
    assert client.patch(address, json=body).status_code == 401
    changed = client.patch(address, json=body, headers=seller.headers).json()
    assert (changed["title"], changed["tags"], changed["category"]) == ("Better", ["new"], "coding")
    for bad in ({"owner_id": "me"}, {"balance": 1}, {"is_admin": True}, {"sales": 9}, {"published_version": 2}):
        assert refusal(client.patch(address, json=bad, headers=seller.headers)) == (400, "unknown_parameter")
    assert refusal(client.patch(address, json={"title": None}, headers=seller.headers)) == (400, "invalid_value")


def test_a_private_listing_is_its_owners_alone(client: TestClient, signed_up: SignUp, seller: Signed) -> None:
    with transaction() as tx:
        listing = new_listing(tx, seller.account_id, visibility="private")
    address = f"/v1/listings/{seller.handle}/{listing.name}"
    unknown = f"/v1/listings/{seller.handle}/{secrets.token_hex(4)}"
    stranger = signed_up("stranger")
    for tail in ("", "/versions", "/prices", "/reviews"):
        assert client.get(address + tail, headers=seller.headers).status_code == 200, tail
        foreign, missing = (client.get(path + tail, headers=stranger.headers) for path in (address, unknown))
        assert refusal(foreign) == refusal(missing) == (404, "not_found")


def test_a_delisted_listing_leaves_the_shelf_but_keeps_its_page(client: TestClient, seller: Signed) -> None:
    with transaction() as tx:
        listing = new_listing(tx, seller.account_id)
    shelf, address = f"/v1/listings?handle={seller.handle}", f"/v1/listings/{seller.handle}/{listing.name}"
    assert client.get(shelf).json()["total"] == 1
    assert client.delete(address, headers=seller.headers).json()["status"] == "delisted"
    assert client.get(shelf).json()["total"] == 0
    assert client.get(address).json()["status"] == "delisted"


def test_an_address_with_nul_is_refused(client: TestClient) -> None:
    for path in ("/v1/listings?q=%00", "/v1/listings/a%00b/c", "/v1/listings?category=a%00"):
        assert refusal(client.get(path)) == (400, "invalid_value"), path


def test_a_new_version_keeps_what_its_body_leaves_out(client: TestClient, seller: Signed) -> None:
    with transaction() as tx:
        model, better = (variant.model for variant in same_base(tx, seller.account_id))
    body = listing_body(model, system_prompt="Be short.", starters=["Hello?"], defaults={"temperature": 0.5})
    listing = client.post("/v1/listings", json=body, headers=seller.headers).json()["model"]
    changed = client.post(
        f"/v1/listings/{listing}/versions", json={"model": better, "starters": ["Hi!"]}, headers=seller.headers
    )
    assert changed.status_code == 201, changed.text
    version = changed.json()
    assert (version["number"], version["system_prompt"], version["starters"]) == (2, "Be short.", ["Hi!"])
    assert version["defaults"] == {"temperature": 0.5}


def same_base(tx: Session, account_id: str) -> list[Variant]:
    base = new_base(tx).id
    return [new_variant(tx, account_id, base) for _ in range(2)]
