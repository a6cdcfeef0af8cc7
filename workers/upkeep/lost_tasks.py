"""A message can be lost with Valkey or with a worker; the row that waits for it cannot. Such rows are sent again.

Every task's body checks its row first, so a message too many changes nothing. Only where many wait already, because
no worker lives, none is added.
"""

from datetime import timedelta

from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.catalog.tables import Listing, ListingVersion
from app.database import utc_now
from app.files import reports, validation
from app.fine_tuning import claim
from app.tasks import DATASETS_QUEUE, FINE_TUNING_QUEUE, MODEL_IMPORT_QUEUE, TaskName, enqueue, generation_queue
from app.valkey import connect
from app.variants.bases import unfinished_imports
from app.variants.tables import BaseModel

PATIENCE = timedelta(seconds=20)
CROWD = 1_000


def wake_fine_tuning(tx: Session) -> int:
    return 0 if crowded(FINE_TUNING_QUEUE) else claim.wake_workers(tx)


def resend_imports(tx: Session) -> int:
    if crowded(MODEL_IMPORT_QUEUE):
        return 0
    waiting = [base for base in unfinished_imports(tx) if base.created_at < utc_now() - 3 * PATIENCE]
    for base in waiting:
        enqueue(tx, TaskName.IMPORT_BASE, {"base_id": base.id, "source": base.source}, MODEL_IMPORT_QUEUE)
    return len(waiting)


def resend_validations(tx: Session) -> int:
    return 0 if crowded(DATASETS_QUEUE) else validation.resend_validations(tx, utc_now() - PATIENCE)


def resend_reports(tx: Session) -> int:
    return 0 if crowded(DATASETS_QUEUE) else reports.resend_reports(tx, utc_now() - PATIENCE)


def resend_checks(tx: Session) -> int:
    query = select(ListingVersion.id, Listing.base_id).join(Listing, Listing.id == ListingVersion.listing_id)
    query = query.join(BaseModel, BaseModel.id == Listing.base_id).where(BaseModel.status == "ready")
    query = query.where(ListingVersion.status == "checking", ListingVersion.created_at < utc_now() - PATIENCE)
    waited_for = tx.scalars(query.with_only_columns(Listing.base_id, maintain_column_froms=True).distinct())
    bases = [base_id for base_id in waited_for if not crowded(generation_queue(base_id))]
    waiting = tx.execute(query.where(Listing.base_id.in_(bases)).limit(CROWD)).all()
    for version_id, base_id in waiting:
        enqueue(tx, TaskName.CHECK_VERSION, {"version_id": version_id}, generation_queue(base_id))
    return len(waiting)


def crowded(queue: str) -> bool:
    """Whether so many messages wait that a few more would help nobody. Without Valkey: no."""
    try:
        with connect() as valkey:
            return int(str(valkey.llen(queue))) >= CROWD
    except RedisError:
        return False
