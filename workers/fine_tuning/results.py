"""From the child's folders to the store: bytes first, then one transaction that makes them the owner's model."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.database import transaction
from app.files.rules import RESULTS
from app.files.tables import File
from app.files.upload import save_file
from app.fine_tuning import finish, progress
from app.fine_tuning.events import Event, add_events
from app.fine_tuning.progress import LostLease
from app.fine_tuning.tables import FineTuningJob
from app.settings import get_settings
from app.variants.bases import add_trained_base
from app.variants.tables import BaseModel, Variant
from app.variants.variants import create_variant
from models_registry.adapter import CONFIG, WEIGHTS, AdapterInfo, check_adapter
from models_registry.store import open_store
from workers.model_import.facts import BaseFacts


def keep_result(job: FineTuningJob, data: Mapping[str, Any], timing: Mapping[str, float]) -> None:
    """The model, its figures, the end of the job and its charge: all or nothing. Raises LostLease."""
    make = trained_base(job, data) if "facts" in data else trained_adapter(job, data)
    with transaction() as tx, Path(data["csv"]).open("rb") as figures:
        progress.owned_job(tx, job.id, job.fencing_token)
        variant = make(tx)
        metrics = data["metrics"]
        shown = {name: value for name, value in metrics.items() if not name.startswith("base_")}
        progress.add_checkpoint(tx, job.id, job.fencing_token, metrics["step"], variant, shown)
        file = save_file(tx, job.account_id, figures, "step_metrics.csv", RESULTS)
        result = {**metrics, "result_files": [file.id], "timing": dict(timing), "samples": data.get("samples", [])}
        if not finish.succeed(tx, job.id, job.fencing_token, variant, data["trained_tokens"], result):
            raise LostLease(job.id)


def trained_adapter(job: FineTuningJob, data: Mapping[str, Any]) -> Callable[[Session], Variant]:
    digest, info = keep_adapter(job, Path(data["folder"]))
    return lambda tx: create_variant(
        tx, job.account_id, job.base_id, digest, info, "fine_tune", job.suffix or "", made_by=job.id
    )


def trained_base(job: FineTuningJob, data: Mapping[str, Any]) -> Callable[[Session], Variant]:
    """Weights of its own: a base that only its owner's variant names, with what it was made of."""
    facts = BaseFacts.model_validate(data["facts"])
    base_id = f"base-{job.id.rpartition('-')[2].lower()}"
    with transaction() as tx:
        parent = tx.get_one(BaseModel, job.base_id)
        training = tx.get_one(File, job.training_file_id)
    lineage = {
        "job": job.id,
        "method": job.method["type"],
        "model": job.model,
        "base": parent.id,
        "base_digest": parent.digest,
        "training_file_digest": training.digest,
        "model_changes": job.method.get("model_changes", []),
    }
    manifest = open_store(get_settings().artifacts_url).put_folder(Path(data["folder"]), "base", lineage)

    def make(tx: Session) -> Variant:
        base = add_trained_base(tx, job.account_id, base_id, parent, manifest.digest, facts, lineage)
        weights = WholeWeights(0, facts.parameters, manifest.bytes)
        names = (job.suffix or "", parent.id, job.id)
        variant = create_variant(tx, job.account_id, base.id, manifest.digest, weights, "fine_tune", *names)
        text = f"It has weights of its own ({base.id}): its first call waits until they are loaded."
        add_events(tx, job.id, [Event(text)])
        return variant

    return make


class WholeWeights(NamedTuple):
    """Rank 0: no adapter."""

    rank: int
    parameters: int
    bytes: int


def keep_checkpoint(job: FineTuningJob, data: Mapping[str, Any]) -> None:
    """An epoch's adapter as a callable checkpoint; once, however often the epoch is repeated. Raises LostLease."""
    with transaction() as tx:
        if progress.has_checkpoint(tx, job.id, data["step"]):
            return
    digest, info = keep_adapter(job, Path(data["folder"]))
    name, step = job.suffix or "", data["step"]
    with transaction() as tx:
        progress.owned_job(tx, job.id, job.fencing_token)
        variant = create_variant(tx, job.account_id, job.base_id, digest, info, "checkpoint", name, None, job.id, step)
        progress.add_checkpoint(tx, job.id, job.fencing_token, data["step"], variant, data["metrics"])


def keep_adapter(job: FineTuningJob, folder: Path) -> tuple[str, AdapterInfo]:
    """Into the registry, by the same checks as an upload."""
    with transaction() as tx:
        linears = tx.get_one(BaseModel, job.base_id).shape["linears"]
    info = check_adapter(folder / WEIGHTS, (folder / CONFIG).read_bytes(), linears)
    (folder / CONFIG).write_text(json.dumps(dict(info.config), sort_keys=True))
    manifest = open_store(get_settings().artifacts_url).put_folder(folder, "adapter", {"base": job.base_id})
    return manifest.digest, info
