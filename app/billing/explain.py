"""What a ledger entry was about, in names: its reference is the id of a purchase, a call or a job."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.billing.tables import Generation, LedgerTransfer, Purchase
from app.catalog.find import listing_addresses


def subjects(tx: Session, transfers: Sequence[LedgerTransfer]) -> dict[str, str]:
    """Reference → the listing bought or the model called; jobs and top-ups are named by their own ids."""
    references = {transfer.reference for transfer in transfers}
    purchases = list(tx.scalars(select(Purchase).where(Purchase.id.in_(references))))
    addresses = listing_addresses(tx, [purchase.listing_id for purchase in purchases])
    calls = tx.execute(select(Generation.id, Generation.model).where(Generation.id.in_(references)))
    named = {row[0]: row[1] for row in calls}
    return named | {purchase.id: addresses[purchase.listing_id] for purchase in purchases}
