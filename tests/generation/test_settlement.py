"""Calls that end together are settled in one transaction; one that cannot be keeps no other from it."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update

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


@pytest.fixture
def settler(gate: Gate) -> Iterator[Settler]:
    settler = Settler()
    yield settler
    gate.opened.set()
    settler.close()


def open_calls(count: int) -> list[str]:
    """Each of another buyer."""
    with transaction() as tx:
        target = call_of(new_listing(tx, new_account(tx).id), input_price=PRICE, output_price=PRICE)
        return [opened(tx, new_account(tx, 100).id, target, prompt=10, most=50) for _ in range(count)]


def states(calls: list[str]) -> list[tuple[str, int | None]]:
    with transaction() as tx:
        rows = tx.execute(select(Generation.id, Generation.state, Generation.charge_micros)).all()
    by_id = {row.id: (row.state, row.charge_micros) for row in rows}
    return [by_id[call] for call in calls]


def settle_behind(gate: Gate, settler: Settler, first: str, others: list[str]) -> list[BaseException | None]:
    """Settle `first`, and `others` while that one is under way; what each raised."""
    with ThreadPoolExecutor(1 + len(others)) as pool:
        asked = [pool.submit(settler.settle, Ending(first, 1, 10, 5))]
        assert gate.entered.wait(20)
        asked += [pool.submit(settler.settle, Ending(call, 1, 10, 5)) for call in others]
        pause = threading.Event()
        for _ in range(2_000):
            if settler.waiting == len(others):
                break
            pause.wait(0.01)
        gate.opened.set()
        return [each.exception(20) for each in asked]


def test_calls_that_end_while_another_is_settled_share_one_transaction(gate: Gate, settler: Settler) -> None:
    calls = open_calls(6)
    assert settle_behind(gate, settler, calls[0], calls[1:]) == [None] * 6
    assert gate.sizes == [1, 5]
    assert states(calls) == [("settled", 15)] * 6
    with transaction() as tx:
        assert verify(tx) == []


def test_a_call_that_cannot_be_settled_keeps_no_other_from_it(gate: Gate, settler: Settler) -> None:
    calls = open_calls(4)
    with transaction() as tx:
        broken = tx.get_one(Generation, calls[2]).account_id
        tx.execute(update(Wallet).where(Wallet.account_id == broken).values(held_micros=0))
    first, second, failed, last = settle_behind(gate, settler, calls[0], calls[1:])
    assert (first, second, last) == (None, None, None)
    assert isinstance(failed, InsufficientFunds)
    assert gate.sizes == [1, 3, 1, 1, 1]
    assert states(calls) == [("settled", 15), ("settled", 15), ("held", None), ("settled", 15)]
    with transaction() as tx:
        tx.execute(update(Wallet).where(Wallet.account_id == broken).values(held_micros=60))
        assert release_call(tx, calls[2], 1)
    with transaction() as tx:
        assert verify(tx) == []
