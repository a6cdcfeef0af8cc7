"""Letting artifacts go that no model of the store needs any more."""

from datetime import timedelta

import structlog
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.database import transaction, utc_now
from app.settings import get_settings
from models_registry.errors import IntegrityError, UnknownArtifact
from models_registry.store import ArtifactStore, open_store

log = structlog.get_logger(__name__)

# By table names: listings and jobs lie above variants in the layers. A deleted model's last calls may still be running.
NEEDED = text("""
WITH open_jobs AS (
    SELECT base_id, parent_variant_id FROM fine_tuning_jobs
    WHERE status IN ('validating_files', 'queued', 'running', 'paused')
), alive AS (
    SELECT base_id, digest, exports FROM variants
    WHERE deleted_at IS NULL OR deleted_at > :recently
       OR id IN (SELECT variant_id FROM listing_versions) OR id IN (SELECT parent_variant_id FROM open_jobs)
)
SELECT digest FROM alive
UNION SELECT exports -> 'merged' ->> 'digest' FROM alive
UNION SELECT digest FROM base_models
    WHERE account_id IS NULL OR id IN (SELECT base_id FROM alive) OR id IN (SELECT base_id FROM open_jobs)
""")


def remove_unused_artifacts(age: timedelta) -> int:
    """Delete files of at least this age that belong to no model which is owned, published, sold or trained on; those
    that a killed worker left, too. Returns how many.
    """
    store = open_store(get_settings().artifacts_url)
    old = list(store.older_than(age.total_seconds()))
    try:
        with transaction() as tx:
            needed = needed_files(tx, store, age)
    except IntegrityError as error:
        log.error("unused_artifacts_left", error=str(error))  # what its model needs is not known
        return 0
    return sum(store.remove(digest, age.total_seconds()) for digest in old if digest not in needed)


def needed_files(tx: Session, store: ArtifactStore, age: timedelta) -> set[str]:
    """Digests of manifests and of the files they name."""
    needed: set[str] = set()
    for digest in tx.scalars(NEEDED, {"recently": utc_now() - age}):
        if digest is None:
            continue
        needed.add(digest)
        try:
            needed.update(blob.digest for blob in store.manifest(digest).files.values())
        except UnknownArtifact:
            continue  # nothing of it is here to be kept
    return needed
