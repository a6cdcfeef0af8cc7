"""Direct preference optimisation (arXiv 2305.18290) of an adapter.

The reference is the model as training begins. Its log-probabilities are computed once, before the first step, and
kept beside the checkpoints: no second model in memory and no second forward pass per step.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from app.fine_tuning.methods import Dpo
from models_registry.prompt import Renderer
from workers.fine_tuning.recipes.batches import split_batch
from workers.fine_tuning.recipes.devices import count, everyones, leads, number
from workers.fine_tuning.recipes.entry import needed, run_recipe
from workers.fine_tuning.recipes.model import pick_device, prepare
from workers.fine_tuning.recipes.objective import Preference, answer_logprobs
from workers.fine_tuning.recipes.process import Parent
from workers.fine_tuning.recipes.rows import Row, read_preferences
from workers.fine_tuning.recipes.training_run import Run, carry_out


def dpo(parent: Parent) -> None:
    spec = parent.spec
    settings, device = Dpo.model_validate(spec.settings), pick_device(spec)
    model, trainable, tokenizer = prepare(spec, settings, device)
    renderer = Renderer.load(tokenizer)
    rows = needed(read_preferences(Path(spec.training), renderer, spec.context_length), "preference")
    held_out = read_preferences(Path(spec.validation), renderer, spec.context_length) if spec.validation else []
    found = reference_logprobs(Path(spec.work), model, rows + held_out, device, spec.pack_tokens)
    parent.tell("note", message=f"Reference of {len(found)} pairs at hand")
    known = [row._replace(reference=pair) for row, pair in zip(rows + held_out, found, strict=True)]
    objective = Preference(settings.strength)
    carry_out(Run(parent, model, trainable, objective, known[: len(rows)], known[len(rows) :]))


@torch.no_grad()
def reference_logprobs(
    work: Path, model: Any, rows: Sequence[Row], device: torch.device, pack_tokens: int
) -> list[tuple[float, float]]:
    """Of both answers of each row, from `work` if an earlier attempt got that far."""
    kept = work / "reference.json"
    if kept.exists():
        return [(pair[0], pair[1]) for pair in json.loads(kept.read_text())]
    lengths = [len(row.ids) for row in rows]
    own: list[tuple[int, list[float]]] = []
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    for part in split_batch(order, lengths, pack_tokens)[number() :: count()]:
        own += zip(part, answer_logprobs(model, [rows[row] for row in part], device).tolist(), strict=True)
    found = [(pair[0], pair[1]) for _, pair in sorted(everyones(own))]
    if leads():
        temporary = work / "reference.new"
        temporary.write_text(json.dumps(found))
        temporary.rename(kept)
    return found


if __name__ == "__main__":
    run_recipe(dpo)
