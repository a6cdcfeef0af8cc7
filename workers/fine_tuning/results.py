"""From the child's folders to the store: bytes first, then one transaction that makes them the owner's model."""

import json
import shutil
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
from models_registry.store import ArtifactStore, open_store
from workers.model_import.facts import BaseFacts


def keep_result(job: FineTuningJob, data: Mapping[str, Any], timing: Mapping[str, float]) -> None:
    """The model, its figures, the end of the job and its charge: all or nothing. Raises LostLease."""
    make = trained_model(job, data)
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


def trained_model(job: FineTuningJob, data: Mapping[str, Any], step: int | None = None) -> Callable[[Session], Variant]:
    """Its bytes are in the store; the call makes it the owner's. `step`: of a checkpoint; None: the job's model."""
    return trained_base(job, data, step) if "facts" in data else trained_adapter(job, data, step)


def trained_adapter(job: FineTuningJob, data: Mapping[str, Any], step: int | None) -> Callable[[Session], Variant]:
    digest, info = keep_adapter(job, Path(data["folder"]))
    named = (origin(step), job.suffix or "", None, job.id, step)
    return lambda tx: create_variant(tx, job.account_id, job.base_id, digest, info, *named)


def origin(step: int | None) -> str:
    return "fine_tune" if step is None else "checkpoint"


def trained_base(job: FineTuningJob, data: Mapping[str, Any], step: int | None) -> Callable[[Session], Variant]:
    """Weights of its own: a base that only its owner's variant names, with what it was made of."""
    facts = BaseFacts.model_validate(data["facts"])
    base_id = f"base-{job.id.rpartition('-')[2].lower()}" + ("" if step is None else f"-{step}")
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
    } | ({} if step is None else {"step": step})
    manifest = artifacts().put_folder(Path(data["folder"]), "base", lineage)

    def make(tx: Session) -> Variant:
        base = add_trained_base(tx, job.account_id, base_id, parent, manifest.digest, facts, lineage)
        weights = WholeWeights(0, facts.parameters, manifest.bytes)
        named = (origin(step), job.suffix or "", parent.id, job.id, step)
        variant = create_variant(tx, job.account_id, base.id, manifest.digest, weights, *named)
        if step is None:
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
    """What an epoch made as a callable checkpoint; once, however often the epoch is repeated. Raises LostLease."""
    step = data["step"]
    with transaction() as tx:
        known = progress.has_checkpoint(tx, job.id, step)
    if not known:
        make = trained_model(job, data, step)
        with transaction() as tx:
            progress.owned_job(tx, job.id, job.fencing_token)
            progress.add_checkpoint(tx, job.id, job.fencing_token, step, make(tx), data["metrics"])
    # A whole model is as large as its base: it need not lie here as well until the job ends.
    shutil.rmtree(Path(data["folder"]).parent, ignore_errors=True)


def keep_adapter(job: FineTuningJob, folder: Path) -> tuple[str, AdapterInfo]:
    """Into the registry, by the same checks as an upload."""
    with transaction() as tx:
        linears = tx.get_one(BaseModel, job.base_id).shape["linears"]
    info = check_adapter(folder / WEIGHTS, (folder / CONFIG).read_bytes(), linears)
    (folder / CONFIG).write_text(json.dumps(dict(info.config), sort_keys=True))
    manifest = artifacts().put_folder(folder, "adapter", {"base": job.base_id})
    return manifest.digest, info


def artifacts() -> ArtifactStore:
    """Refuses by StorageFull what would fill the disk."""
    settings = get_settings()
    return open_store(settings.artifacts_url, settings.api.min_free_disk_bytes)
