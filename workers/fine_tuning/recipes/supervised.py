"""Supervised fine-tuning on conversations: `python -m workers.fine_tuning.recipes.supervised`.

The spec comes as one JSON line on stdin, reports go out as JSON lines (workers/fine_tuning/spec.py). A LoRA adapter
learns, or every weight; the loss counts the assistant's turns, or all of them.
"""

from pathlib import Path

from app.fine_tuning.methods import Supervised
from models_registry.prompt import Renderer
from workers.fine_tuning.recipes.entry import needed, run_recipe
from workers.fine_tuning.recipes.model import pick_device, prepare
from workers.fine_tuning.recipes.objective import Likelihood
from workers.fine_tuning.recipes.process import Parent
from workers.fine_tuning.recipes.rows import read_rows
from workers.fine_tuning.recipes.training_run import Run, carry_out


def supervised(parent: Parent) -> None:
    spec = parent.spec
    settings = Supervised.model_validate(spec.settings)
    model, trainable, tokenizer = prepare(spec, settings, pick_device(spec))
    renderer, all_turns = Renderer.load(tokenizer), settings.loss_on == "all"
    rows = read_rows(Path(spec.training), renderer, spec.context_length, all_turns=all_turns)
    held_out = (
        read_rows(Path(spec.validation), renderer, spec.context_length, all_turns=all_turns) if spec.validation else []
    )
    carry_out(Run(parent, model, trainable, Likelihood(), needed(rows, "row"), held_out))


if __name__ == "__main__":
    run_recipe(supervised)
