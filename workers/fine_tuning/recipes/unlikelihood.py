"""Safety training with negative samples: rows marked `unwanted` are pushed down, the others are learned as usual."""

from pathlib import Path

from app.fine_tuning.methods import Unlikelihood
from models_registry.prompt import Renderer
from workers.fine_tuning.recipes.entry import needed, run_recipe
from workers.fine_tuning.recipes.model import pick_device, prepare
from workers.fine_tuning.recipes.objective import Likelihood
from workers.fine_tuning.recipes.process import Parent
from workers.fine_tuning.recipes.rows import read_rows
from workers.fine_tuning.recipes.training_run import Run, carry_out


def unlikelihood(parent: Parent) -> None:
    spec = parent.spec
    settings = Unlikelihood.model_validate(spec.settings)
    model, trainable, tokenizer = prepare(spec, settings, pick_device(spec))
    renderer = Renderer.load(tokenizer)
    rows = read_rows(Path(spec.training), renderer, spec.context_length)
    held_out = read_rows(Path(spec.validation), renderer, spec.context_length) if spec.validation else []
    carry_out(Run(parent, model, trainable, Likelihood(settings.weight), needed(rows, "row"), held_out))


if __name__ == "__main__":
    run_recipe(unlikelihood)
