"""The ledger's own promises: sums to 0, never rewritten, never overdrawn, whatever the order of events."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.billing.ledger import PROMOTIONS, REVENUE, Posting, available, balance, held, post, verify
from app.billing.metering import release_call, settle_call
from app.billing.purchase import buy
from app.billing.tables import LedgerPosting, LedgerTransfer
from app.billing.wallet import read_wallet
from app.catalog.find import find_listing
from app.database import transaction
from app.errors import AppError, InsufficientFunds
from app.ids import new_id
from tests.billing.calls import call_of, opened
from tests.conftest import Services
from tests.factories import new_account, new_listing


def test_a_transfer_that_does_not_sum_to_0_is_refused(services: Services) -> None:
    with transaction() as tx:
        account = new_account(tx, 1_000)
    with pytest.raises(DBAPIError, match="does not sum to 0"), transaction() as tx:
        post(tx, "test_unbalanced", account.id, [Posting(available(account.id), 5), Posting(PROMOTIONS, -4)])
    with transaction() as tx:
        assert read_wallet(tx, account.id).available_micros == 1_000


@pytest.mark.parametrize("table", ["ledger_postings", "ledger_transfers", "prices"])
@pytest.mark.parametrize("change", ["UPDATE {} SET id = id", "DELETE FROM {}"])
def test_what_is_booked_is_never_rewritten(services: Services, table: str, change: str) -> None:
    with transaction() as tx:
        new_listing(tx, new_account(tx, 1).id)
    with pytest.raises(DBAPIError, match="never changed"), transaction() as tx:
        tx.execute(text(change.format(table)))


def test_the_same_cause_is_booked_once(tx: Session) -> None:
    account = new_account(tx, 1_000)
    postings = [Posting(available(account.id), -5), Posting(REVENUE, 5)]
    post(tx, "test_once", account.id, postings)
    with pytest.raises(DBAPIError), tx.begin_nested():
        post(tx, "test_once", account.id, postings)
    assert read_wallet(tx, account.id).available_micros == 995


def test_transfers_of_one_wallet_at_once_lose_no_micro(services: Services) -> None:
    with transaction() as tx:
        account = new_account(tx, 1_000).id

    def move(number: int) -> None:
        amount = 7 if number % 2 else -7
        with transaction() as tx:
            post(tx, "test_move", new_id("test"), [Posting(available(account), amount), Posting(REVENUE, -amount)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(move, range(40)))
    with transaction() as tx:
        assert read_wallet(tx, account).available_micros == 1_000
        assert balance(tx, available(account)) == 1_000
        last = select(LedgerPosting.balance_after).where(LedgerPosting.ledger_account == available(account))
        assert tx.scalars(last.order_by(LedgerPosting.id.desc()).limit(1)).one() == 1_000


def test_a_transfer_moves_one_wallet(tx: Session) -> None:
    first, second = new_account(tx, 10).id, new_account(tx, 0).id
    with pytest.raises(ValueError, match="one wallet, not 2"):
        post(tx, "test_two", first, [Posting(available(first), -1), Posting(available(second), 1)])
    with pytest.raises(ValueError, match="one wallet, not 0"):
        post(tx, "test_none", first, [Posting(REVENUE, -1), Posting(PROMOTIONS, 1)])
    with pytest.raises(ValueError, match="no such side"):
        post(tx, "test_side", first, [Posting(f"wallet:{first}:owed", -1), Posting(REVENUE, 1)])


STEP = st.tuples(st.sampled_from(["call", "settle", "release", "buy"]), st.integers(0, 2_000), st.integers(0, 3))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3_000), st.lists(STEP, max_size=12))
def test_no_order_of_events_breaks_the_ledger(
    services: Services, funds: int, steps: list[tuple[str, int, int]]
) -> None:
    with transaction() as tx:
        seller = new_account(tx)
        listings = [new_listing(tx, seller.id, access=price) for price in (0, 500, 999, 3_000)]
        buyer = new_account(tx, funds).id
        target = call_of(listings[1], input_price=1_000_000, output_price=1_000_000)
    calls: list[str] = []
    for kind, amount, which in steps:
        try:
            with transaction() as tx:
                if kind == "buy":
                    buy(tx, buyer, find_listing(tx, seller.handle, listings[which].name, buyer), None)
                elif kind == "call":
                    calls.append(opened(tx, buyer, target, prompt=1, most=amount))
                elif calls and kind == "settle":
                    settle_call(tx, calls[which % len(calls)], 1, 1, amount)
                elif calls:
                    release_call(tx, calls[which % len(calls)], 1)
        except AppError:
            continue
    with transaction() as tx:
        assert verify(tx) == []


def test_an_overdraft_is_refused_whole(tx: Session) -> None:
    payer = new_account(tx, 10).id
    for postings in (
        [Posting(available(payer), -11), Posting(REVENUE, 11)],
        [Posting(held(payer), -1), Posting(available(payer), 1)],
    ):
        with pytest.raises(InsufficientFunds):
            post(tx, "test_overdraft", payer, postings)
        assert tx.scalars(select(LedgerTransfer.id).where(LedgerTransfer.kind == "test_overdraft")).all() == []
    assert read_wallet(tx, payer).available_micros == 10
    assert balance(tx, available(payer)) == 10


def test_a_wallet_that_nobody_opened_is_empty(tx: Session) -> None:
    with pytest.raises(InsufficientFunds):
        post(tx, "test_unknown", "acct-unknown", [Posting(available("acct-unknown"), 1), Posting(REVENUE, -1)])
