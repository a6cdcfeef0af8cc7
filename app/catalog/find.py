"""Listings by address. What a viewer may not see reads as not found."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts.tables import Account
from app.catalog.prices import price_in_force
from app.catalog.rules import overall_status
from app.catalog.schemas import ListingOut
from app.catalog.tables import Listing, ListingVersion
from app.errors import NotFound


def find_listing(tx: Session, handle: str, name: str, viewer_account_id: str | None) -> Listing:
    """In any state but private-and-foreign, or not yet published and foreign. Raises NotFound."""
    query = select(Listing).join(Account, Account.id == Listing.account_id)
    listing = tx.scalar(query.where(Account.handle == handle, Listing.name == name))
    if listing is not None and listing.account_id == viewer_account_id:
        return listing
    if listing is None or listing.visibility == "private" or listing.published_version is None:
        raise NotFound(f"The listing '{handle[:40]}/{name[:80]}' does not exist.")
    return listing


def find_own_listing(tx: Session, handle: str, name: str, account_id: str) -> Listing:
    """To change it. Raises NotFound for anybody else's."""
    listing = find_listing(tx, handle, name, account_id)
    if listing.account_id != account_id:
        raise NotFound(f"You have no listing '{handle[:40]}/{name[:80]}'.")
    return listing


def list_own_listings(tx: Session, account_id: str) -> list[Listing]:
    """In any state, newest first."""
    query = select(Listing).where(Listing.account_id == account_id)
    return list(tx.scalars(query.order_by(Listing.id.desc()).limit(100)))


def listing_addresses(tx: Session, listing_ids: Sequence[str]) -> dict[str, str]:
    """Listing id → `handle/name`."""
    query = select(Listing.id, Account.handle, Listing.name).join(Account, Account.id == Listing.account_id)
    return {row[0]: f"{row[1]}/{row[2]}" for row in tx.execute(query.where(Listing.id.in_(listing_ids)))}


def published_version(tx: Session, listing: Listing, number: int | None) -> ListingVersion:
    """The latest published one, or that number if it was published. Raises NotFound."""
    wanted = number or listing.published_version
    query = select(ListingVersion).where(ListingVersion.listing_id == listing.id, ListingVersion.number == wanted)
    version = tx.scalar(query.where(ListingVersion.status == "published"))
    if version is None:
        raise NotFound("That version is not published.")
    return version


def latest_version(tx: Session, listing_id: str) -> ListingVersion:
    """Whatever its state."""
    query = select(ListingVersion).where(ListingVersion.listing_id == listing_id)
    return tx.scalars(query.order_by(ListingVersion.number.desc()).limit(1)).one()


def list_versions(tx: Session, listing: Listing, for_owner: bool) -> list[ListingVersion]:
    """Newest first; others than the owner see the published ones."""
    query = select(ListingVersion).where(ListingVersion.listing_id == listing.id)
    if not for_owner:
        query = query.where(ListingVersion.status == "published")
    return list(tx.scalars(query.order_by(ListingVersion.number.desc()).limit(100)))


def describe(tx: Session, listing: Listing, viewer_account_id: str | None) -> ListingOut:
    """The listing as this viewer may see it."""
    for_owner = listing.account_id == viewer_account_id
    handle = tx.scalars(select(Account.handle).where(Account.id == listing.account_id)).one()
    latest = latest_version(tx, listing.id)
    shown = published_version(tx, listing, None) if listing.published_version else latest
    status = overall_status(listing.delisted_at is not None, listing.published_version is not None, latest.status)
    return ListingOut.of(listing, handle, shown, price_in_force(tx, listing.id), status, for_owner)


def count_public(tx: Session) -> dict[str, int]:
    """Listings on sale per category."""
    on_sale = (Listing.visibility == "public") & Listing.published_version.is_not(None) & Listing.delisted_at.is_(None)
    query = select(Listing.category, func.count()).where(on_sale).group_by(Listing.category)
    return {category: count for category, count in tx.execute(query)}
