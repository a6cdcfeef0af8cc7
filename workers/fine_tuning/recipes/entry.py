"""How a recipe's process begins and ends."""

import os
import sys
from collections.abc import Callable

from workers.fine_tuning.recipes.devices import join
from workers.fine_tuning.recipes.process import Parent
from workers.fine_tuning.recipes.refusal import Refused
from workers.fine_tuning.recipes.rows import Row


def run_recipe(recipe: Callable[[Parent], None]) -> None:
    """What the recipe refuses is told; anything else ends the process with its traceback."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    parent = Parent()
    if parent.spec.devices > 1:
        join(parent.spec)
    try:
        recipe(parent)
    except Refused as refusal:
        parent.tell("refused", code=refusal.code, message=str(refusal), param=refusal.param)
    sys.stdout.flush()
    os._exit(0)


def needed(rows: list[Row], what: str) -> list[Row]:
    """Raises Refused where a file has nothing to learn from."""
    if not rows:
        raise Refused("invalid_training_file", f"The training file has no {what} to learn from.", "training_file")
    return rows
