"""The body of `model_import.run`: convert in a child process, store, tell the truth in Postgres."""

import json
import subprocess
import sys
from pathlib import Path

import structlog

from app.database import transaction
from app.settings import get_settings
from app.variants.bases import fail_import, find_base, finish_import
from models_registry.store import open_store
from workers.model_import.facts import BaseFacts

log = structlog.get_logger(__name__)

TIMEOUT = 3600
REFUSED = 3


class ImportFailed(Exception):
    """The message is what the operator reads."""


def run_import(base_id: str, source: str) -> None:
    """Idempotent: a second delivery of a finished import does nothing."""
    with transaction() as tx:
        if find_base(tx, base_id).status != "importing":
            return
    store = open_store(get_settings().artifacts_url)
    try:
        with store.scratch() as folder:
            facts = convert(source, folder)
            manifest = store.put_folder(folder, "base", {"base": base_id, "architecture": facts.architecture})
    except ImportFailed as error:
        log.warning("base_not_imported", base=base_id, error=str(error))
        with transaction() as tx:
            fail_import(tx, base_id, str(error))
        return
    with transaction() as tx:
        finish_import(tx, base_id, manifest.digest, facts.model_dump())
    log.info("base_imported", base=base_id, digest=manifest.digest)


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
