"""Calls that end together are settled in one transaction; one that cannot be keeps no other from it."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.billing.ledger import verify
from app.billing.metering import Ending, release_call
from app.billing.tables import Generation, Wallet
from app.database import transaction
from app.errors import InsufficientFunds
from tests.billing.calls import call_of, opened
from tests.conftest import Services
from tests.factories import new_account, new_listing
from workers.generation import settlement
from workers.generation.settlement import Settler

PRICE = 1_000_000  # a micro per token


class Gate:
    """Stands before `book`: counts what comes in, and lets the first wait until the others have come."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.entered, self.opened = threading.Event(), threading.Event()
        self._book = settlement.book
        monkeypatch.setattr(settlement, "book", self)

    def __call__(self, endings: Sequence[Ending]) -> None:
        self.sizes.append(len(endings))
        self.entered.set()
        assert self.opened.wait(20)
        self._book(endings)


@pytest.fixture
def gate(services: Services, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def open_calls(count: int) -> list[str]:
    """Each of another buyer."""
    with transaction() as tx:
        target = call_of(new_listing(tx, new_account(tx).id), input_price=PRICE, output_price=PRICE)
        return [opened(tx, new_account(tx, 100).id, target, prompt=10, most=50) for _ in range(count)]


def buyer_of(tx: Session, call: str) -> str:
    return tx.get_one(Generation, call).account_id


def states(calls: list[str]) -> list[tuple[str, int | None]]:
    with transaction() as tx:
        rows = tx.execute(select(Generation.id, Generation.state, Generation.charge_micros)).all()
    by_id = {row.id: (row.state, row.charge_micros) for row in rows}
    return [by_id[call] for call in calls]


def settle_behind(gate: Gate, first: str, others: list[str]) -> list[Future[None]]:
    """Asks to settle `others` while `first` is under way."""
    settler = Settler()
    asked = [settler.ask(Ending(first, 1, 10, 5))]
    assert gate.entered.wait(20)
    asked += [settler.ask(Ending(call, 1, 10, 5)) for call in others]
    gate.opened.set()
    return asked


def test_calls_that_end_while_another_is_settled_share_one_transaction(gate: Gate) -> None:
    calls = open_calls(6)
    assert [each.exception(20) for each in settle_behind(gate, calls[0], calls[1:])] == [None] * 6
    assert gate.sizes == [1, 5]
    assert states(calls) == [("settled", 15)] * 6
    with transaction() as tx:
        assert verify(tx) == []


def test_a_call_that_cannot_be_settled_keeps_no_other_from_it(gate: Gate) -> None:
    calls = open_calls(4)
    with transaction() as tx:
        broken = buyer_of(tx, calls[2])
        tx.execute(update(Wallet).where(Wallet.account_id == broken).values(held_micros=0))
    first, second, failed, last = [each.exception(20) for each in settle_behind(gate, calls[0], calls[1:])]
    assert (first, second, last) == (None, None, None)
    assert isinstance(failed, InsufficientFunds)
    assert gate.sizes == [1, 3, 1, 1, 1]
    assert states(calls) == [("settled", 15), ("settled", 15), ("held", None), ("settled", 15)]
    with transaction() as tx:
        tx.execute(update(Wallet).where(Wallet.account_id == broken).values(held_micros=60))
        assert release_call(tx, calls[2], 1)
    with transaction() as tx:
        assert verify(tx) == []


def test_a_wallet_that_somebody_locked_holds_up_its_own_calls_only(gate: Gate) -> None:
    calls = open_calls(4)
    with transaction() as tx:
        tx.get_one(Wallet, buyer_of(tx, calls[2]), with_for_update=True)
        first, second, locked, last = settle_behind(gate, calls[0], calls[1:])
        assert [each.exception(20) for each in (first, second, last)] == [None] * 3
        assert not locked.done()
    assert locked.exception(20) is None
    assert states(calls) == [("settled", 15)] * 4


def test_a_settlement_that_stays_impossible_is_left_to_upkeep(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settlement, "PATIENCE", 0.0)
    (call,) = open_calls(1)
    gate.opened.set()
    assert Settler().ask(Ending(call, 1, 10, 5)).exception(20) is None
    assert states([call]) == [("held", None)]
    with transaction() as tx:
        assert release_call(tx, call, 1)
