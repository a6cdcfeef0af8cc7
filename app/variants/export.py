"""A model leaves the store as its owner's: the plain files, or adapter and base merged by a worker when first asked."""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from app.database import utc_now
from app.errors import ExportFailed, InvalidValue
from app.settings import get_settings
from app.tasks import MODEL_IMPORT_QUEUE, TaskName, enqueue
from app.variants.tables import Variant
from app.variants.variants import find_variant
from models_registry.store import Manifest, open_store

MERGED = "merged"
# After so long the worker is taken for dead, and a failed merge is tried again.
PATIENCE = timedelta(minutes=5)


def exported(tx: Session, account_id: str, model: str, merged: bool) -> Manifest | None:
    """The files to send; None while a worker merges them. Raises ModelNotFound, ExportFailed."""
    variant = find_variant(tx, account_id, model)
    store = open_store(get_settings().artifacts_url)
    if not merged:
        return store.manifest(variant.digest)
    if not variant.is_adapter:
        raise InvalidValue("This model has weights of its own: there is nothing to merge.", param="format")
    tx.refresh(variant, with_for_update=True)
    state = variant.exports.get(MERGED, {})
    if "digest" in state:
        return store.manifest(state["digest"])
    if not state or datetime.fromisoformat(state["at"]) < utc_now() - PATIENCE:
        variant.exports = {**variant.exports, MERGED: {"at": utc_now().isoformat()}}
        enqueue(tx, TaskName.MERGE_VARIANT, {"variant_id": variant.id}, MODEL_IMPORT_QUEUE)
    elif "error" in state:
        raise ExportFailed(f"Merging failed: {state['error']}")
    return None


def finish_merge(tx: Session, variant_id: str, *, digest: str | None = None, error: str | None = None) -> None:
    """What the worker made of it."""
    variant = tx.get_one(Variant, variant_id, with_for_update=True)
    outcome = {"digest": digest} if digest else {"error": error or "unknown", "at": utc_now().isoformat()}
    variant.exports = {**variant.exports, MERGED: outcome}


def waits_for_merge(tx: Session, variant_id: str) -> Variant | None:
    """The variant, unless it was merged before: messages may come twice."""
    variant = tx.get(Variant, variant_id)
    return None if variant is None or "digest" in variant.exports.get(MERGED, {}) else variant
