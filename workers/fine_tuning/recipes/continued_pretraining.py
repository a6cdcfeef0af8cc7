"""More pre-training of a base on raw text: the texts end to end, cut into full blocks, every token a target."""

from pathlib import Path

from app.fine_tuning.methods import ContinuedPretraining
from models_registry.prompt import Renderer
from workers.fine_tuning.recipes.entry import needed, run_recipe
from workers.fine_tuning.recipes.model import pick_device, prepare
from workers.fine_tuning.recipes.objective import Likelihood
from workers.fine_tuning.recipes.process import Parent
from workers.fine_tuning.recipes.rows import read_texts
from workers.fine_tuning.recipes.training_run import Run, carry_out


def continued_pretraining(parent: Parent) -> None:
    spec = parent.spec
    settings = ContinuedPretraining.model_validate(spec.settings)
    model, trainable, tokenizer = prepare(spec, settings, pick_device(spec))
    renderer, block = Renderer.load(tokenizer), settings.block(spec.context_length)
    rows = read_texts(Path(spec.training), renderer, block)
    held_out = read_texts(Path(spec.validation), renderer, block) if spec.validation else []
    carry_out(Run(parent, model, trainable, Likelihood(), needed(rows, "text"), held_out))


if __name__ == "__main__":
    run_recipe(continued_pretraining)
