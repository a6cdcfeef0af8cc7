"""What an epoch made, laid out as a model of its own for the parent to take, which then removes it."""

import json
from pathlib import Path
from typing import Any

from workers.fine_tuning.recipes.checkpoint import check_room, whole_folder
from workers.fine_tuning.recipes.devices import count, leads
from workers.fine_tuning.recipes.trainable import Trainable

MODEL, FACTS = "model", "facts.json"


def lay_out(trainable: Trainable, folder: Path, min_free_bytes: int) -> None:
    """By all devices together. Raises OSError when the disk is full, or would have less than `min_free_bytes` left."""
    if not leads():
        trainable.save(folder)
        return
    with whole_folder(folder, folder.with_name("new-epoch")) as temporary:
        check_room(temporary, trainable.weights.nbytes * count() + min_free_bytes)
        facts = trainable.save(temporary / MODEL)
        (temporary / FACTS).write_text(json.dumps({} if facts is None else {"facts": facts.model_dump()}))


def laid_out(folder: Path) -> dict[str, Any] | None:
    """The model's folder, and facts where it has weights of its own; None once the parent has taken it."""
    if not (folder / FACTS).exists():
        return None
    facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
    return {"folder": str(folder / MODEL), **facts}
