"""Publishing: a listing, its versions, and the check that each must pass before anyone can call it."""

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.catalog.find import latest_version
from app.catalog.prices import set_price
from app.catalog.rules import check_category, check_license, check_name, check_tags
from app.catalog.schemas import ListingChange, ListingCreate, VersionCreate
from app.catalog.search_text import refresh_search
from app.catalog.tables import Listing, ListingVersion
from app.database import utc_now
from app.errors import AlreadyExists, InUse, InvalidValue
from app.tasks import TaskName, enqueue, generation_queue
from app.variants.tables import Variant
from app.variants.variants import find_variant


def create_listing(tx: Session, account_id: str, body: ListingCreate) -> Listing:
    """A listing with version 1 under check. Raises InvalidValue, AlreadyExists, ModelNotFound, PriceBelowBase."""
    variant = find_variant(tx, account_id, body.model)
    listing = Listing(
        account_id=account_id,
        name=check_name(body.name),
        title=body.title,
        summary=body.summary,
        description=body.description,
        category=check_category(body.category),
        tags=check_tags(body.tags),
        license=check_license(body.license),
        visibility=body.visibility,
        base_id=variant.base_id,
    )
    try:
        with tx.begin_nested():
            tx.add(listing)
    except IntegrityError as error:
        raise AlreadyExists(f"You already have a listing named '{body.name}'.", param="name") from error
    refresh_search(tx, listing)
    set_price(tx, listing, body.prices)
    insert_version(tx, listing, variant, body, 1)
    return listing


def add_version(tx: Session, listing: Listing, body: VersionCreate) -> ListingVersion:
    """The next version, under check; the published one serves until it passes.

    What the body leaves out (system prompt, defaults, starters, examples) stays as in the version before.
    """
    variant = find_variant(tx, listing.account_id, body.model)
    if variant.base_id != listing.base_id:
        raise InvalidValue(f"A version of this listing needs a model of {listing.base_id}.", param="model")
    tx.refresh(listing, with_for_update=True)
    before = latest_version(tx, listing.id)
    kept = {name: getattr(before, name) for name in VersionCreate.model_fields if name != "model"}
    whole = VersionCreate.model_validate(kept | body.model_dump(exclude_unset=True))
    return insert_version(tx, listing, variant, whole, before.number + 1)


def insert_version(tx: Session, listing: Listing, variant: Variant, body: VersionCreate, number: int) -> ListingVersion:
    version = ListingVersion(
        listing_id=listing.id,
        number=number,
        variant_id=variant.id,
        system_prompt=body.system_prompt,
        defaults=body.defaults.model_dump(exclude_none=True),
        starters=list(body.starters),
        examples=[example.model_dump(exclude_none=True) for example in body.examples],
    )
    tx.add(version)
    tx.flush()
    enqueue(tx, TaskName.CHECK_VERSION, {"version_id": version.id}, generation_queue(variant.base_id))
    return version


def change_listing(tx: Session, listing: Listing, body: ListingChange) -> Listing:
    """What the storefront says of it; fields left out stay. Raises InvalidValue, InUse (hiding what was sold)."""
    tx.refresh(listing, with_for_update={"key_share": True})
    if body.visibility == "private" and listing.sales_count:
        raise InUse("Buyers have access to this listing: make it unlisted, or delist it.", param="visibility")
    checks = {"category": check_category, "license": check_license, "tags": check_tags}
    for field, value in body.model_dump(exclude_unset=True).items():
        if value is None:
            raise InvalidValue(f"{field} cannot be null.", param=field)
        setattr(listing, field, checks[field](value) if field in checks else value)
    tx.flush()
    refresh_search(tx, listing)
    return listing


def delist(tx: Session, listing: Listing) -> Listing:
    """Off the shelf; buyers keep what they bought."""
    listing.delisted_at = listing.delisted_at or utc_now()
    return listing
