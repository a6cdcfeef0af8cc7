"""The body of `model_import.run`: convert in a child process, store, tell the truth in Postgres."""

import json
import subprocess
import sys
from pathlib import Path

import structlog

from app.database import transaction
from app.settings import get_settings
from app.variants.bases import fail_import, find_base, finish_import
from models_registry.errors import RegistryError
from models_registry.store import Manifest, open_store
from workers.model_import.facts import BaseFacts

log = structlog.get_logger(__name__)

TIMEOUT = 3600
REFUSED = 3


class ImportFailed(Exception):
    """The message is what the operator reads."""


def run_import(base_id: str, source: str) -> None:
    """Idempotent: a second delivery of a finished import does nothing. Whatever fails is the operator's to read."""
    with transaction() as tx:
        if find_base(tx, base_id).status != "importing":
            return
    try:
        manifest, facts = keep(base_id, source)
    except (ImportFailed, RegistryError) as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or type(error).__name__
    else:
        with transaction() as tx:
            finish_import(tx, base_id, manifest.digest, facts.model_dump())
        log.info("base_imported", base=base_id, digest=manifest.digest)
        return
    log.warning("base_not_imported", base=base_id, error=reason)
    with transaction() as tx:
        fail_import(tx, base_id, reason)


def keep(base_id: str, source: str) -> tuple[Manifest, BaseFacts]:
    """Raises ImportFailed, RegistryError, OSError."""
    settings = get_settings()
    store = open_store(settings.artifacts_url, settings.api.min_free_disk_bytes)
    with store.scratch() as folder:
        facts = convert(source, folder)
        return store.put_folder(folder, "base", {"base": base_id, "architecture": facts.architecture}), facts


def convert(source: str, folder: Path) -> BaseFacts:
    """Raises ImportFailed with the converter's reason."""
    command = [sys.executable, "-m", "workers.model_import.convert", source, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise ImportFailed(f"the conversion took more than {TIMEOUT} s") from error
    if done.returncode == REFUSED:
        raise ImportFailed(json.loads(done.stdout)["refused"])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ImportFailed(f"the conversion ended with code {done.returncode}: {last}")
    return BaseFacts.model_validate_json(done.stdout)
