"""A run's state on disk, whole or not at all: temporary folder → fsync → rename. safetensors and JSON, no pickle."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS, STATE = "state.safetensors", "state.json"


def save_checkpoint(work: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Keep this step's state and forget earlier ones."""
    folder, temporary = work / f"step-{step:09d}", work / "new"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(dict(tensors), temporary / TENSORS)
    (temporary / STATE).write_text(json.dumps({"step": step, **state}))
    for path in (temporary / TENSORS, temporary / STATE, temporary):
        sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    sync(work)
    for old in checkpoints(work):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def load_checkpoint(work: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest whole state, if there is one. `state["step"]`: steps done."""
    found = checkpoints(work)
    if not found:
        return None
    state: dict[str, Any] = json.loads((found[-1] / STATE).read_text())
    return load_file(found[-1] / TENSORS), state


def checkpoints(work: Path) -> list[Path]:
    return sorted(path for path in work.glob("step-*") if (path / STATE).is_file() and (path / TENSORS).is_file())


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
