"""The body of `model_import.merge`, and the child process that does it: an adapter's base with its change added in."""

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import structlog

from app.database import transaction
from app.settings import get_settings
from app.variants.bases import find_base
from app.variants.export import finish_merge, waits_for_merge
from app.variants.tables import BaseModel, Variant
from models_registry.errors import RegistryError
from models_registry.store import open_store

log = structlog.get_logger(__name__)

TIMEOUT = 3600


class Merges:
    """One at a time in this process, for each holds a whole model in memory; those that come meanwhile wait their turn
    without a thread.
    """

    def __init__(self, merge: Callable[[str], None]) -> None:
        self._merge, self._slot = merge, threading.Lock()
        self._waiting: deque[str] = deque()

    def wake(self, variant_id: str) -> None:
        self._waiting.append(variant_id)
        while self._waiting and self._slot.acquire(blocking=False):
            try:
                while self._waiting:
                    self._merge(self._waiting.popleft())
            finally:
                self._slot.release()


def merge_variant(variant_id: str) -> None:
    """Idempotent: the result is named by its content. What goes wrong is written down for the owner."""
    with transaction() as tx:
        variant = waits_for_merge(tx, variant_id)
        if variant is None:
            return
        base = find_base(tx, variant.base_id)
    digest, trouble = None, None
    try:
        digest = merged(base, variant)
    except (MergeBroke, RegistryError) as error:
        trouble = str(error)
    except OSError as error:
        trouble = error.strerror or type(error).__name__
    with transaction() as tx:
        finish_merge(tx, variant_id, digest=digest, error=trouble)
    log.info("variant_merged", variant_id=variant_id, error=trouble)


def merged(base: BaseModel, variant: Variant) -> str:
    """The digest of the whole model. Raises MergeBroke, RegistryError, OSError."""
    settings = get_settings()
    store = open_store(settings.artifacts_url, settings.api.min_free_disk_bytes)
    with store.scratch() as folder:
        run_child(str(store.folder(base.digest or "")), str(store.folder(variant.digest)), str(folder))
        return store.put_folder(folder, "base", {"base": base.id}).digest


class MergeBroke(Exception):
    """The child's last words."""


def run_child(*folders: str) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "workers.fine_tuning.merge", *folders],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env={name: value for name, value in os.environ.items() if not name.startswith("GPTSTORE_")},
        )
    except subprocess.TimeoutExpired as error:
        raise MergeBroke(f"it took more than {TIMEOUT} s") from error
    if done.returncode:
        raise MergeBroke((done.stderr.strip().splitlines() or ["no message"])[-1][:300])


def main(base: str, adapter: str, folder: str) -> None:
    """Write a Hugging Face folder in the numbers of the base. Three folders as arguments."""
    import torch
    from transformers import AutoModelForCausalLM

    from workers.fine_tuning.recipes.lora import merge
    from workers.fine_tuning.recipes.trainable import TOKENIZER_FILES
    from workers.model_import.convert import save

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", local_files_only=True)
    with torch.no_grad():
        merge(model, Path(adapter))
    for name in TOKENIZER_FILES:
        if (Path(base) / name).exists():
            (Path(folder) / name).write_bytes((Path(base) / name).read_bytes())
    print(json.dumps(save(model, Path(folder), "unknown").model_dump()))


if __name__ == "__main__":
    main(*sys.argv[1:])
