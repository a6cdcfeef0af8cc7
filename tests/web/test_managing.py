"""After publishing: a seller changes prices, adds versions and delists by pages, each once and only their own."""

from dataclasses import dataclass

import pytest

from app.billing.purchase import buy
from app.catalog.check import finish_check
from app.catalog.find import latest_version, list_versions
from app.catalog.prices import list_prices
from app.catalog.tables import Listing
from app.database import transaction
from tests.factories import new_account, new_listing, new_variant
from tests.web.conftest import Browser, Member


@dataclass(frozen=True)
class Stand:
    """A seller with one listing on sale, at $2.00, with prompt and starters; `address` of its managing page."""

    seller: Browser
    listing: Listing
    other_model: str

    @property
    def address(self) -> str:
        return f"/{self.seller.handle}/{self.listing.name}/manage"

    def action(self, what: str) -> str:
        return self.address.replace("manage", what)


@pytest.fixture
def stand(member: Member) -> Stand:
    seller = member("seller")
    with transaction() as tx:
        listing = new_listing(tx, seller.account_id, system_prompt="Be brief.", starters=["Why?", "How?"])
        other = new_variant(tx, seller.account_id, listing.base_id).model
        new_variant(tx, seller.account_id)
    return Stand(seller, listing, other)


def test_a_new_price_is_in_force_at_once_and_once(stand: Stand) -> None:
    seller = stand.seller
    assert f'href="{stand.address}"' in seller.get("/models").text
    assert 'name="access_micros" type="text" value="2"' in seller.get(stand.address).text
    fields = {name: seller.hidden(stand.address, name) for name in ("csrf", "idempotency_key")}
    fields |= {"access_micros": "3.25", "input_micros_per_million_tokens": "0.05"}
    fields |= {"output_micros_per_million_tokens": "0.2"}
    for _ in range(2):
        answer = seller.http.post(stand.action("prices"), data=fields)
        assert answer.headers["location"] == f"{stand.address}?done=priced"
    assert "$3.25" in seller.get(stand.action("").rstrip("/")).text
    with transaction() as tx:
        assert [price.access_micros for price in list_prices(tx, stand.listing.id)] == [3_250_000, 2_000_000]


def test_a_refused_price_changes_nothing_and_leaves_the_other_form_as_it_was(stand: Stand) -> None:
    answer = stand.seller.send(
        stand.address,
        stand.action("prices"),
        access_micros="7",
        input_micros_per_million_tokens="0.01",
        output_micros_per_million_tokens="0.2",
    )
    assert (answer.status_code, 'id="input_micros_per_million_tokens-wrong"' in answer.text) == (400, True)
    assert 'value="7"' in answer.text
    assert "Be brief.</textarea>" in answer.text
    with transaction() as tx:
        assert len(list_prices(tx, stand.listing.id)) == 1


def test_a_new_version_is_what_the_form_shows_and_is_checked_first(stand: Stand) -> None:
    page = stand.seller.get(stand.address).text
    assert page.count("<option") == 2, "models of another base are not offered"
    assert "Why?\nHow?</textarea>" in page
    answer = stand.seller.send(
        stand.address, stand.action("versions"), model=stand.other_model, system_prompt="", starters="Who?"
    )
    assert answer.headers["location"] == f"{stand.address}?done=version"
    with transaction() as tx:
        version = latest_version(tx, stand.listing.id)
        assert (version.number, version.status, version.system_prompt) == (2, "checking", None)
        assert version.starters == ["Who?"]
        finish_check(tx, version.id, ["It answers as its base does."])
    assert "It answers as its base does." in stand.seller.get(stand.address).text


def test_a_refused_version_keeps_what_was_typed(stand: Stand) -> None:
    starters = "\n".join(["Again?"] * 9)
    answer = stand.seller.send(stand.address, stand.action("versions"), model=stand.other_model, starters=starters)
    assert (answer.status_code, 'id="starters-wrong"' in answer.text) == (400, True)
    assert f"{starters}</textarea>" in answer.text
    assert "Be brief." not in answer.text
    with transaction() as tx:
        assert len(list_versions(tx, stand.listing, for_owner=True)) == 1


def test_off_sale_takes_a_second_thought_and_keeps_the_buyers(stand: Stand) -> None:
    with transaction() as tx:
        buyer = new_account(tx, 2_000_000).id
        buy(tx, buyer, tx.get_one(Listing, stand.listing.id), None)
    unsure = stand.seller.send(stand.address, stand.action("delist"))
    assert (unsure.status_code, 'id="sure-wrong"' in unsure.text) == (400, True)
    answer = stand.seller.send(stand.address, stand.action("delist"), sure="yes")
    assert answer.headers["location"] == f"{stand.address}?done=delisted"
    with transaction() as tx:
        assert tx.get_one(Listing, stand.listing.id).delisted_at is not None
    page = stand.seller.get(f"{stand.address}?done=delisted").text
    assert "Who bought it keeps it." in page
    assert "Take it off sale" not in page


def test_nobody_else_manages_a_listing(stand: Stand, member: Member, visitor: Browser) -> None:
    stranger = member("stranger")
    assert stranger.get(stand.address).status_code == 404
    assert "Manage" not in stranger.get(stand.action("").rstrip("/")).text
    fields = {"csrf": stranger.hidden("/wallet", "csrf"), "idempotency_key": "0123456789", "sure": "yes"}
    prices = {"input_micros_per_million_tokens": "9", "output_micros_per_million_tokens": "9"}
    for what, more in (("prices", prices), ("versions", {"model": stand.other_model}), ("delist", {})):
        assert stranger.http.post(stand.action(what), data=fields | more).status_code == 404
    assert visitor.get(stand.address).status_code == 303
    with transaction() as tx:
        assert len(list_prices(tx, stand.listing.id)) == 1
        assert len(list_versions(tx, stand.listing, for_owner=True)) == 1
        assert tx.get_one(Listing, stand.listing.id).delisted_at is None
