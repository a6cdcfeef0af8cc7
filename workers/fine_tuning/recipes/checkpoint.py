"""A run's state on disk, whole or not at all: temporary folder → fsync → rename. safetensors and JSON, no pickle."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS, STATE = "state.safetensors", "state.json"


def save_checkpoint(
    work: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], min_free_bytes: int = 0
) -> bool:
    """Keep this step's state and forget earlier ones; False where it was kept already.

    Raises OSError when the disk is full, or would have less than `min_free_bytes` left; the last state then stays.
    """
    folder = work / f"step-{step:09d}"
    if folder in checkpoints(work):
        return False
    with whole_folder(folder, work / "new") as temporary:
        check_room(work, sum(each.nbytes for each in tensors.values()) + min_free_bytes)
        save_file(dict(tensors), temporary / TENSORS)
        (temporary / STATE).write_text(json.dumps({"step": step, **state}))
    for old in checkpoints(work):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    return True


@contextmanager
def whole_folder(folder: Path, temporary: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of `folder` with all its bytes on the disk, or not at all."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_checkpoint(work: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest whole state, if there is one. `state["step"]`: steps done."""
    found = checkpoints(work)
    if not found:
        return None
    state: dict[str, Any] = json.loads((found[-1] / STATE).read_text())
    return load_file(found[-1] / TENSORS), state


def checkpoints(work: Path) -> list[Path]:
    return sorted(path for path in work.glob("step-*") if (path / STATE).is_file() and (path / TENSORS).is_file())


def check_room(work: Path, needed: int) -> None:
    free = shutil.disk_usage(work).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"a checkpoint needs {needed} bytes of disk, {free} are free")


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
