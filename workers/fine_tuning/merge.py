"""The body of `model_import.merge`, and the child process that does it: an adapter's base with its change added in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import structlog

from app.database import transaction
from app.settings import get_settings
from app.variants.bases import find_base
from app.variants.export import finish_merge, waits_for_merge
from models_registry.store import open_store

log = structlog.get_logger(__name__)

TIMEOUT = 3600


def merge_variant(variant_id: str) -> None:
    """Idempotent: the result is named by its content."""
    with transaction() as tx:
        variant = waits_for_merge(tx, variant_id)
        if variant is None:
            return
        base = find_base(tx, variant.base_id)
    store = open_store(get_settings().artifacts_url)
    with store.scratch() as folder:
        arguments = [str(store.folder(base.digest or "")), str(store.folder(variant.digest)), str(folder)]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "workers.fine_tuning.merge", *arguments],
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                env={name: value for name, value in os.environ.items() if not name.startswith("GPTSTORE_")},
            )
            last = (done.stderr.strip().splitlines() or ["no message"])[-1][:300] if done.returncode else None
        except subprocess.TimeoutExpired:
            last = f"it took more than {TIMEOUT} s"
        digest = None if last else store.put_folder(folder, "base", {"base": base.id}).digest
    with transaction() as tx:
        finish_merge(tx, variant_id, digest=digest, error=last)
    log.info("variant_merged", variant_id=variant_id, error=last)


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
