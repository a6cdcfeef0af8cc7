"""Buying access to a listing: one transaction, one transfer, one entitlement that delisting never removes."""

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.accounts.tables import Account
from app.billing.ledger import REVENUE, Posting, available, post, seller
from app.billing.rules import Split, split_price
from app.billing.tables import Entitlement, Purchase
from app.catalog.prices import price_in_force
from app.catalog.tables import Listing, Price
from app.errors import AlreadyPurchased, ListingUnavailable, NotFound, PriceChanged
from app.settings import get_settings


def buy(tx: Session, account_id: str, listing: Listing, expected_price_micros: int | None) -> Purchase:
    """Raises ListingUnavailable (own, delisted, unpublished), AlreadyPurchased, PriceChanged, InsufficientFunds."""
    # Locked first: a price change, a delisting or the same purchase comes either before this one or after it.
    tx.refresh(listing, with_for_update={"key_share": True})
    if listing.account_id == account_id:
        raise ListingUnavailable("This listing is your own; call it without buying.")
    if has_bought(tx, account_id, listing.id):
        raise AlreadyPurchased("You already have access to this listing.")
    if listing.delisted_at is not None or listing.published_version is None:
        raise ListingUnavailable("This listing is not on sale.")
    price = price_in_force(tx, listing.id)
    if expected_price_micros is not None and expected_price_micros != price.access_micros:
        raise PriceChanged(f"The price is {price.access_micros} micros now.", param="expected_price_micros")
    split = split_price(price.access_micros, get_settings().billing.fee_percent)
    purchase = record(tx, account_id, listing, price, split)
    if price.access_micros:
        shares = [Posting(seller(listing.account_id), split.seller), Posting(REVENUE, split.platform)]
        post(tx, "purchase", purchase.id, [Posting(available(account_id), -price.access_micros), *shares])
    return purchase


def record(tx: Session, account_id: str, listing: Listing, price: Price, split: Split) -> Purchase:
    """The purchase and its entitlement. Call it with the listing locked: the unique keys are only a second guard."""
    purchase = Purchase(
        account_id=account_id,
        listing_id=listing.id,
        price_id=price.id,
        amount_micros=price.access_micros,
        fee_micros=split.platform,
    )
    tx.add(purchase)
    tx.flush()
    tx.add(Entitlement(account_id=account_id, listing_id=listing.id, purchase_id=purchase.id))
    tx.execute(update(Listing).where(Listing.id == listing.id).values(sales_count=Listing.sales_count + 1))
    tx.flush()
    return purchase


def is_entitled(tx: Session, account_id: str, listing: Listing) -> bool:
    """The owner, whoever bought it, and everybody while access costs nothing and it is on sale."""
    if listing.account_id == account_id or has_bought(tx, account_id, listing.id):
        return True
    return listing.delisted_at is None and price_in_force(tx, listing.id).access_micros == 0


def has_bought(tx: Session, account_id: str, listing_id: str) -> bool:
    return tx.get(Entitlement, (account_id, listing_id)) is not None


def callable_listings(tx: Session, account_id: str) -> list[str]:
    """`handle/name` of the account's own and bought listings that have a published version, newest first."""
    bought = select(Entitlement.listing_id).where(Entitlement.account_id == account_id)
    mine = (Listing.account_id == account_id) | Listing.id.in_(bought)
    query = select(Account.handle, Listing.name).join(Listing, Listing.account_id == Account.id)
    query = query.where(mine, Listing.published_version.is_not(None)).order_by(Listing.id.desc())
    return [f"{handle}/{name}" for handle, name in tx.execute(query)]


def find_purchase(tx: Session, account_id: str, purchase_id: str) -> Purchase:
    """The caller's own; raises NotFound."""
    purchase = tx.get(Purchase, purchase_id)
    if purchase is None or purchase.account_id != account_id:
        raise NotFound("You have no purchase of that id.")
    return purchase


def list_purchases(tx: Session, account_id: str, after: str | None, limit: int) -> list[Purchase]:
    """Newest first, up to `limit + 1`."""
    query = select(Purchase).where(Purchase.account_id == account_id)
    if after is not None:
        query = query.where(Purchase.id < after)
    return list(tx.scalars(query.order_by(Purchase.id.desc()).limit(limit + 1)))
