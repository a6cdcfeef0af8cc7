"""Calls that end together are settled in one transaction; one that cannot be keeps no other from it."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.billing.ledger import verify
from app.billing.metering import Ending, release_call
from app.billing.tables import Generation, Wallet
from app.database import transaction
from app.errors import InsufficientFunds
from tests.billing.calls import call_of, opened
from tests.conftest import Services
from tests.factories import new_account, new_listing
from workers.generation import settlement
from workers.generation.settlement import Asked, Settler

PRICE = 1_000_000  # a micro per token


class Gate:
    """Stands before `book`: counts what comes in, lets the first wait until the others have come, and may fail it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.failures: list[Exception] = []
        self.entered, self.opened = threading.Event(), threading.Event()
        self._book = settlement.book
        monkeypatch.setattr(settlement, "book", self)

    def __call__(self, asked: Sequence[Asked]) -> None:
        self.sizes.append(len(asked))
        self.entered.set()
        assert self.opened.wait(20)
        if self.failures:
            raise self.failures.pop()
        self._book(asked)


@pytest.fixture
def gate(services: Services, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def open_calls(buyers: int, each: int = 1) -> list[Asked]:
    """`each` calls of as many new accounts, by account, as they are to be settled."""
    with transaction() as tx:
        target = call_of(new_listing(tx, new_account(tx).id), input_price=PRICE, output_price=PRICE)
        accounts = [new_account(tx, 60 * each).id for _ in range(buyers)]
        return [
            Asked(account, Ending(opened(tx, account, target, prompt=10, most=50), 1, 10, 5))
            for account in accounts
            for _ in range(each)
        ]


def states(calls: Sequence[Asked]) -> list[tuple[str, int | None]]:
    with transaction() as tx:
        rows = [tx.get_one(Generation, call.ending.generation_id) for call in calls]
        return [(row.state, row.charge_micros) for row in rows]


def release(call: Asked) -> None:
    with transaction() as tx:
        assert release_call(tx, call.ending.generation_id, 1)


def settle_behind(gate: Gate, first: Asked, others: Sequence[Asked]) -> list[Future[None]]:
    """Asks to settle `others` while `first` is under way."""
    settler = Settler()
    booked = [settler.ask(first.account_id, first.ending)]
    assert gate.entered.wait(20)
    booked += [settler.ask(each.account_id, each.ending) for each in others]
    gate.opened.set()
    return booked


def test_calls_that_end_while_another_is_settled_share_one_transaction(gate: Gate) -> None:
    calls = open_calls(6)
    assert [each.exception(20) for each in settle_behind(gate, calls[0], calls[1:])] == [None] * 6
    assert gate.sizes == [1, 5]
    assert states(calls) == [("settled", 15)] * 6
    with transaction() as tx:
        assert verify(tx) == []


def test_a_call_that_cannot_be_settled_keeps_no_other_from_it(gate: Gate) -> None:
    calls = open_calls(4)
    broken = update(Wallet).where(Wallet.account_id == calls[2].account_id)
    with transaction() as tx:
        tx.execute(broken.values(held_micros=0))
    try:
        first, second, failed, last = [each.exception(20) for each in settle_behind(gate, calls[0], calls[1:])]
        assert (first, second, last) == (None, None, None)
        assert isinstance(failed, InsufficientFunds)
        assert states(calls) == [("settled", 15), ("settled", 15), ("held", None), ("settled", 15)]
    finally:
        with transaction() as tx:
            tx.execute(broken.values(held_micros=60))
        release(calls[2])
    with transaction() as tx:
        assert verify(tx) == []


def test_a_wallet_that_somebody_locked_holds_up_its_own_calls_only(gate: Gate) -> None:
    """Twenty of them, before the others' in the queue: each alone would wait for the lock in its turn."""
    (first, *locked), others = open_calls(1, each=20), open_calls(3)
    with transaction() as tx:
        tx.get_one(Wallet, first.account_id, with_for_update=True)
        booked = settle_behind(gate, first, [*locked, *others])
        assert [each.exception(4) for each in booked[20:]] == [None] * 3
        assert not any(each.done() for each in booked[:20])
    assert [each.exception(20) for each in booked] == [None] * 23
    assert states([first, *locked, *others]) == [("settled", 15)] * 23
    with transaction() as tx:
        assert verify(tx) == []


@pytest.mark.parametrize("failure", [OperationalError("", {}, Exception("away")), PoolTimeout("no connection")])
def test_a_settlement_outlives_a_restart_of_postgres(gate: Gate, failure: Exception) -> None:
    calls = open_calls(3)
    gate.failures = [failure] * 3
    assert [each.exception(20) for each in settle_behind(gate, calls[0], calls[1:])] == [None] * 3
    assert states(calls) == [("settled", 15)] * 3


def test_a_settlement_is_tried_however_long_it_waited_and_then_left_to_upkeep(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlement, "PATIENCE", 0.0)
    possible, impossible = open_calls(2)
    gate.opened.set()
    settler = Settler()
    assert settler.ask(possible.account_id, possible.ending).exception(20) is None
    gate.failures = [OperationalError("", {}, Exception("away"))] * 2
    assert settler.ask(impossible.account_id, impossible.ending).exception(20) is None
    assert states([possible, impossible]) == [("settled", 15), ("held", None)]
    release(impossible)
