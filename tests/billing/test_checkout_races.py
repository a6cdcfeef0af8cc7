"""A purchase against what the seller does at the same moment: one comes wholly before the other."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.billing.purchase import buy
from app.billing.tables import Purchase
from app.billing.wallet import read_wallet
from app.catalog.find import find_own_listing
from app.catalog.prices import price_in_force, set_price
from app.catalog.publish import change_listing, delist
from app.catalog.schemas import ListingChange, PricesIn
from app.catalog.tables import Listing
from app.database import transaction
from app.errors import InUse, ListingUnavailable, PriceChanged
from tests.conftest import Services
from tests.factories import new_account, new_listing

PRICE = 1_000
DEARER = PricesIn(
    access_micros=2 * PRICE, input_micros_per_million_tokens=50_000, output_micros_per_million_tokens=150_000
)
Change = Callable[[Session, Listing], object]


class Market:
    """A seller's listing and a buyer who can afford it."""

    def __init__(self) -> None:
        with transaction() as tx:
            self.seller, self.buyer = new_account(tx), new_account(tx, 5 * PRICE).id
            self.name = new_listing(tx, self.seller.id, access=PRICE).name

    def listing(self, tx: Session) -> Listing:
        return find_own_listing(tx, self.seller.handle, self.name, self.seller.id)

    def buy(self, tx: Session) -> Purchase:
        return buy(tx, self.buyer, self.listing(tx), PRICE)


@pytest.fixture
def market(services: Services) -> Market:
    return Market()


def blocked_behind(tx: Session) -> None:
    """Return once somebody waits for a lock that `tx` holds."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))")
    deadline = time.monotonic() + 10
    while not tx.scalar(waiting):
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.005)


def during(first: Callable[[Session], object], second: Callable[[], object]) -> "Future[object]":
    """Start `second` in another thread when `first` is done but not committed; both have ended on return."""
    with ThreadPoolExecutor(1) as pool:
        with transaction() as tx:
            first(tx)
            later = pool.submit(second)
            blocked_behind(tx)
        return later


def changing(market: Market, change: Change) -> Callable[[], object]:
    def run() -> object:
        with transaction() as tx:
            return change(tx, market.listing(tx))

    return run


def buying(market: Market) -> Callable[[], object]:
    def run() -> object:
        with transaction() as tx:
            return market.buy(tx)

    return run


def test_a_price_raised_during_a_purchase_begins_after_it(market: Market) -> None:
    def raise_price(tx: Session, listing: Listing) -> object:
        return set_price(tx, listing, DEARER)

    during(market.buy, changing(market, raise_price)).result()
    with transaction() as tx:
        purchase = tx.query(Purchase).filter_by(account_id=market.buyer).one()
        assert purchase.amount_micros == PRICE
        assert purchase.created_at < price_in_force(tx, purchase.listing_id).effective_at


def test_a_purchase_during_a_price_rise_sees_the_new_price(market: Market) -> None:
    later = during(lambda tx: set_price(tx, market.listing(tx), DEARER), buying(market))
    with pytest.raises(PriceChanged):
        later.result()
    with transaction() as tx:
        assert read_wallet(tx, market.buyer).available_micros == 5 * PRICE


def test_a_purchase_during_a_delisting_is_refused(market: Market) -> None:
    def take_down(tx: Session) -> None:
        delist(tx, market.listing(tx))
        tx.flush()

    with pytest.raises(ListingUnavailable):
        during(take_down, buying(market)).result()


def test_a_listing_cannot_be_hidden_while_it_is_being_sold(market: Market) -> None:
    def hide(tx: Session, listing: Listing) -> object:
        return change_listing(tx, listing, ListingChange(visibility="private"))

    with pytest.raises(InUse):
        during(market.buy, changing(market, hide)).result()
