"""A new model from raw text: tokenizer → random weights → blocks → cosine schedule → held-out perplexity."""

from pathlib import Path

from app.fine_tuning.methods import Pretraining
from models_registry.prompt import Renderer
from workers.fine_tuning.recipes.devices import first_alone
from workers.fine_tuning.recipes.entry import needed, run_recipe
from workers.fine_tuning.recipes.model import pick_device, pick_dtype
from workers.fine_tuning.recipes.new_model import new_model, train_tokenizer
from workers.fine_tuning.recipes.objective import Likelihood
from workers.fine_tuning.recipes.process import Parent
from workers.fine_tuning.recipes.rows import read_texts
from workers.fine_tuning.recipes.trainable import whole_model
from workers.fine_tuning.recipes.training_run import Run, carry_out

DECAY, WARMUP, BETAS = 0.1, 200, (0.9, 0.95)


def pretraining(parent: Parent) -> None:
    spec = parent.spec
    settings, device, training = Pretraining.model_validate(spec.settings), pick_device(spec), Path(spec.training)
    tokenizer = Path(spec.base)
    if settings.tokenizer == "train":
        with first_alone():
            tokenizer = train_tokenizer(training, settings.vocabulary, Path(spec.work) / "tokenizer")
    renderer = Renderer.load(tokenizer)
    rows = needed(read_texts(training, renderer, settings.context), "text")
    held_out = read_texts(Path(spec.validation), renderer, settings.context) if spec.validation else []
    model = new_model(settings, tokenizer, spec.seed, pick_dtype(spec, device)).to(device)
    whole = whole_model(model, tokenizer)
    carry_out(
        Run(
            parent,
            model,
            whole,
            Likelihood(),
            rows,
            held_out,
            decay=DECAY,
            decayed=whole.matrices,
            warmup=WARMUP,
            betas=BETAS,
        )
    )


if __name__ == "__main__":
    run_recipe(pretraining)
