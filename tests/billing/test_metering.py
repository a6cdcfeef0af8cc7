"""A call is held at its worst, charged for what it produced, by exactly one of those who may end it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.accounts.api_keys import create_key
from app.billing.ledger import balance, seller, verify
from app.billing.metering import (
    Ending,
    affordable_tokens,
    end_calls,
    next_attempt,
    release_call,
    release_stale_calls,
    renew_leases,
    settle_call,
)
from app.billing.tables import Generation
from app.billing.wallet import read_wallet
from app.catalog.tables import Listing
from app.database import transaction, utc_now
from app.errors import InsufficientQuota
from tests.billing.calls import call_of, opened
from tests.conftest import Services, Signed
from tests.factories import new_account, new_listing

# One micro per token in, two per token out; the base's part is 0.05 and 0.15.
INPUT, OUTPUT = 1_000_000, 2_000_000


@pytest.fixture
def listing(services: Services) -> Listing:
    with transaction() as tx:
        return new_listing(tx, new_account(tx).id)


def balances(tx: Session, account_id: str) -> tuple[int, int]:
    wallet = read_wallet(tx, account_id)
    return wallet.available_micros, wallet.held_micros


def test_the_worst_case_is_held_and_only_what_was_produced_is_charged(tx: Session, listing: Listing) -> None:
    buyer = new_account(tx, 1_000)
    call = opened(tx, buyer.id, call_of(listing, input_price=INPUT, output_price=OUTPUT), prompt=100, most=200)
    assert balances(tx, buyer.id) == (500, 500)
    assert settle_call(tx, call, 1, 100, 50)
    assert balances(tx, buyer.id) == (800, 0)
    # Of 200 micros the base's part is ceil(5 + 7.5) = 13; of the other 187 the store keeps 18.
    assert balance(tx, seller(listing.account_id)) == 200 - 13 - 18


def test_a_charge_never_exceeds_the_hold(tx: Session, listing: Listing) -> None:
    buyer = new_account(tx, 1_000)
    call = opened(tx, buyer.id, call_of(listing, input_price=INPUT, output_price=OUTPUT), prompt=10, most=10)
    assert settle_call(tx, call, 1, 10, 10_000)
    assert balances(tx, buyer.id) == (970, 0)


def test_a_released_call_costs_nothing_and_cannot_be_settled_after(tx: Session, listing: Listing) -> None:
    buyer = new_account(tx, 1_000)
    call = opened(tx, buyer.id, call_of(listing, input_price=INPUT, output_price=OUTPUT), prompt=10, most=10)
    assert release_call(tx, call, 1)
    assert not settle_call(tx, call, 1, 10, 5)
    assert not release_call(tx, call, 1)
    assert balances(tx, buyer.id) == (1_000, 0)


def test_a_wallet_too_small_for_the_worst_case_keeps_its_credit(tx: Session, listing: Listing) -> None:
    buyer = new_account(tx, 29)
    with pytest.raises(InsufficientQuota):
        opened(tx, buyer.id, call_of(listing, input_price=INPUT, output_price=OUTPUT), prompt=10, most=10)
    assert balances(tx, buyer.id) == (29, 0)


def test_a_wallet_covers_as_many_tokens_as_it_says(tx: Session, listing: Listing) -> None:
    buyer, target = new_account(tx, 109), call_of(listing, input_price=INPUT, output_price=OUTPUT)
    assert affordable_tokens(tx, buyer.id, target, 10) == 49
    with pytest.raises(InsufficientQuota):
        opened(tx, buyer.id, target, prompt=10, most=50)
    opened(tx, buyer.id, target, prompt=10, most=49)
    assert affordable_tokens(tx, buyer.id, target, 10) == 0


def test_only_the_present_attempt_settles(tx: Session, listing: Listing) -> None:
    buyer = new_account(tx, 1_000)
    call = opened(tx, buyer.id, call_of(listing, input_price=INPUT, output_price=OUTPUT), prompt=10, most=10)
    assert next_attempt(tx, call, 1, 30.0) == 2
    assert next_attempt(tx, call, 1, 30.0) is None
    assert not settle_call(tx, call, 1, 10, 10)
    assert settle_call(tx, call, 2, 10, 10)
    assert next_attempt(tx, call, 2, 30.0) is None


def test_of_many_who_would_end_a_call_exactly_one_does(services: Services, listing: Listing) -> None:
    with transaction() as tx:
        buyer = new_account(tx, 1_000).id
        call = opened(tx, buyer, call_of(listing, input_price=INPUT, output_price=OUTPUT), prompt=10, most=100)

    def end(number: int) -> bool:
        with transaction() as tx:
            return settle_call(tx, call, 1, 10, 45) if number % 2 else release_call(tx, call, 1)

    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(end, range(16)))
    assert ended.count(True) == 1
    with transaction() as tx:
        assert balances(tx, buyer) == ((900, 0) if ended.index(True) % 2 else (1_000, 0))


def test_many_calls_end_in_one_go_and_each_only_once(services: Services, listing: Listing) -> None:
    target = call_of(listing, input_price=INPUT, output_price=OUTPUT)
    with transaction() as tx:
        buyers = [new_account(tx, 1_000).id for _ in range(3)]
        calls = [opened(tx, buyers[number % 3], target, prompt=10, most=10) for number in range(12)]
        assert settle_call(tx, calls[0], 1, 10, 10)

    def end(order: int) -> int:
        endings = [Ending(call, 1, 10, 10 if at % 2 else None) for at, call in enumerate(calls)]
        with transaction() as tx:
            return end_calls(tx, [*endings[::order], Ending("chatcmpl-unknown", 1), Ending(calls[1], 2)])

    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(end, [1, -1] * 8))
    assert sum(ended) == 11
    with transaction() as tx:
        assert verify(tx) == []
    with transaction() as tx:
        # Of each buyer's four calls every other one is released; the first of all was settled before.
        assert [balances(tx, buyer) for buyer in buyers] == [(910, 0), (940, 0), (940, 0)]


def test_two_that_end_many_calls_of_the_same_wallets_never_deadlock(services: Services, listing: Listing) -> None:
    """The first one's calls stand in the order of the wallets, the second one's against it."""
    target = call_of(listing, input_price=INPUT, output_price=OUTPUT)
    with transaction() as tx:
        buyers = [new_account(tx, 10_000).id for _ in range(6)]
        rounds = [
            [[opened(tx, buyer, target, prompt=10, most=10) for buyer in buyers[::order]] for order in (1, -1)]
            for _ in range(10)
        ]

    def end(calls: list[str]) -> int:
        with transaction() as tx:
            return end_calls(tx, [Ending(call, 1, 10, 10) for call in calls])

    with ThreadPoolExecutor(2) as pool:
        for both in rounds:
            assert list(pool.map(end, both)) == [6, 6]
    with transaction() as tx:
        assert verify(tx) == []


def test_a_lease_is_renewed_around_a_call_that_is_being_ended(services: Services, listing: Listing) -> None:
    target = call_of(listing, input_price=INPUT, output_price=OUTPUT)
    with transaction() as tx:
        buyer = new_account(tx, 1_000).id
        ending, going_on = (opened(tx, buyer, target, prompt=10, most=10, lease=1.0) for _ in range(2))
    with transaction() as tx:
        assert end_calls(tx, [Ending(ending, 1)]) == 1
        with transaction() as other:
            renew_leases(other, [ending, going_on], 3_600)
    with transaction() as tx:
        left = tx.get_one(Generation, going_on).lease_expires_at - utc_now()
        assert left > timedelta(minutes=50)
        assert release_call(tx, going_on, 1)


def test_a_wallet_for_exactly_ten_calls_pays_for_ten_of_twenty_simultaneous_ones(
    services: Services, listing: Listing
) -> None:
    target = call_of(listing, input_price=INPUT, output_price=OUTPUT)
    with transaction() as tx:
        buyer = new_account(tx, 10 * 210).id

    def call(_: int) -> str | None:
        try:
            with transaction() as tx:
                return opened(tx, buyer, target, prompt=10, most=100)
        except InsufficientQuota:
            return None

    with ThreadPoolExecutor(16) as pool:
        calls = [each for each in pool.map(call, range(20)) if each]
        assert len(calls) == 10

        def settle(call: str) -> bool:
            with transaction() as tx:
                return settle_call(tx, call, 1, 10, 100)

        assert all(pool.map(settle, calls))
    with transaction() as tx:
        assert verify(tx) == []
        assert balances(tx, buyer) == (0, 0)


def test_a_key_spends_no_more_than_its_budget_however_many_calls_it_makes_at_once(
    services: Services, listing: Listing
) -> None:
    target = call_of(listing, input_price=INPUT, output_price=OUTPUT)
    with transaction() as tx:
        buyer = new_account(tx, 100_000).id
        key, _ = create_key(tx, buyer, "small", ["inference"], budget_micros=650)

    def call(_: int) -> str | None:
        try:
            with transaction() as tx:
                return opened(tx, buyer, target, prompt=10, most=100, api_key_id=key.id)
        except InsufficientQuota:
            return None

    with ThreadPoolExecutor(8) as pool:
        calls = [each for each in pool.map(call, range(8)) if each]
    assert len(calls) == 3
    with transaction() as tx:
        assert release_call(tx, calls[0], 1)
        opened(tx, buyer, target, prompt=10, most=100, api_key_id=key.id)


def test_a_call_that_nobody_works_on_is_released_and_a_renewed_one_is_not(tx: Session, listing: Listing) -> None:
    buyer, target = new_account(tx, 1_000), call_of(listing, input_price=INPUT, output_price=OUTPUT)
    lost = opened(tx, buyer.id, target, prompt=10, most=10)
    kept = opened(tx, buyer.id, target, prompt=10, most=10)
    late = opened(tx, buyer.id, target, prompt=10, most=10)
    an_hour_ago = utc_now() - timedelta(hours=1)
    tx.execute(update(Generation).where(Generation.id.in_([lost, kept])).values(lease_expires_at=an_hour_ago))
    just_now = utc_now() - timedelta(seconds=2)
    tx.execute(update(Generation).where(Generation.id == late).values(lease_expires_at=just_now))
    renew_leases(tx, [kept], 30.0)
    assert release_stale_calls(tx) >= 1
    states = {call: tx.get_one(Generation, call, populate_existing=True).state for call in (lost, kept, late)}
    assert states == {lost: "released", kept: "held", late: "held"}
    assert balances(tx, buyer.id) == (940, 60)


def test_usage_is_what_was_settled(client: TestClient, signed_up: Callable[..., Signed], listing: Listing) -> None:
    user, target = signed_up(), call_of(listing, input_price=INPUT, output_price=OUTPUT)
    with transaction() as tx:
        for produced in (10, 20):
            settle_call(tx, opened(tx, user.account_id, target, prompt=5, most=50), 1, 5, produced)
        release_call(tx, opened(tx, user.account_id, target, prompt=5, most=50), 1)
    for group, value in (("model", target.model), ("api_key", "browser"), ("day", f"{utc_now():%Y-%m-%d}")):
        answer = client.get(f"/v1/usage?group_by={group}", headers=user.headers).json()
        [row] = answer["data"]
        assert (row["group"], row["calls"], row["prompt_tokens"], row["completion_tokens"]) == (value, 2, 10, 30)
        assert row["charge_micros"] == 70
    assert client.get("/v1/usage?group_by=mood", headers=user.headers).json()["error"]["code"] == "invalid_value"
