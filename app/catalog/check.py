"""The effect check's verdict on a version, recorded once."""

from collections.abc import Sequence

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.catalog.tables import Listing, ListingVersion
from app.database import utc_now


def finish_check(tx: Session, version_id: str, reasons: Sequence[str]) -> bool:
    """`published` without reasons, `rejected` with them; False when it was decided before."""
    status = "rejected" if reasons else "published"
    checking = update(ListingVersion).where(ListingVersion.id == version_id, ListingVersion.status == "checking")
    published_at = None if reasons else utc_now()
    verdict = checking.values(status=status, reasons=list(reasons), published_at=published_at)
    decided = tx.execute(verdict.returning(ListingVersion.listing_id, ListingVersion.number)).one_or_none()
    if decided is None:
        return False
    if not reasons:
        # Checks may end out of order; an older version never replaces a newer one.
        older = (Listing.published_version.is_(None)) | (Listing.published_version < decided.number)
        tx.execute(
            update(Listing).where(Listing.id == decided.listing_id, older).values(published_version=decided.number)
        )
    return True
