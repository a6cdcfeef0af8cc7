"""From the child's folders to the store: bytes first, then one transaction that makes them the owner's model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.database import transaction
from app.files.rules import RESULTS
from app.files.upload import save_file
from app.fine_tuning import finish, progress
from app.fine_tuning.progress import LostLease
from app.fine_tuning.tables import FineTuningJob
from app.settings import get_settings
from app.variants.tables import BaseModel
from app.variants.variants import create_variant
from models_registry.adapter import CONFIG, WEIGHTS, AdapterInfo, check_adapter
from models_registry.store import open_store


def keep_result(job: FineTuningJob, data: Mapping[str, Any]) -> None:
    """The model, its figures, the end of the job and its charge: all or nothing. Raises LostLease."""
    digest, info = keep_adapter(job, Path(data["folder"]))
    with transaction() as tx, Path(data["csv"]).open("rb") as figures:
        progress.owned_job(tx, job.id, job.fencing_token)
        variant = create_variant(tx, job.account_id, job.base_id, digest, info, "fine_tune", job.suffix or "")
        metrics = data["metrics"]
        shown = {name: value for name, value in metrics.items() if name != "base_valid_loss"}
        progress.add_checkpoint(tx, job.id, job.fencing_token, metrics["step"], variant, shown)
        file = save_file(tx, job.account_id, figures, "step_metrics.csv", RESULTS)
        result = {**metrics, "result_files": [file.id]}
        if not finish.succeed(tx, job.id, job.fencing_token, variant, data["trained_tokens"], result):
            raise LostLease(job.id)


def keep_checkpoint(job: FineTuningJob, data: Mapping[str, Any]) -> None:
    """An epoch's adapter as a callable checkpoint; once, however often the epoch is repeated. Raises LostLease."""
    with transaction() as tx:
        if progress.has_checkpoint(tx, job.id, data["step"]):
            return
    digest, info = keep_adapter(job, Path(data["folder"]))
    suffix = f"{job.suffix or ''}"
    with transaction() as tx:
        progress.owned_job(tx, job.id, job.fencing_token)
        variant = create_variant(tx, job.account_id, job.base_id, digest, info, "checkpoint", suffix)
        progress.add_checkpoint(tx, job.id, job.fencing_token, data["step"], variant, data["metrics"])


def keep_adapter(job: FineTuningJob, folder: Path) -> tuple[str, AdapterInfo]:
    """Into the registry, by the same checks as an upload."""
    with transaction() as tx:
        linears = tx.get_one(BaseModel, job.base_id).shape["linears"]
    info = check_adapter(folder / WEIGHTS, (folder / CONFIG).read_bytes(), linears)
    (folder / CONFIG).write_text(json.dumps(dict(info.config), sort_keys=True))
    manifest = open_store(get_settings().artifacts_url).put_folder(folder, "adapter", {"base": job.base_id})
    return manifest.digest, info
