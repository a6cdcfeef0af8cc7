"""Direct preference optimisation (arXiv 2305.18290) of an adapter.

The reference is the model as training begins. Its log-probabilities are computed once, before the first step, and
kept beside the checkpoints as they come: no second model in memory and no second forward pass per step.
"""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from app.fine_tuning.methods import Dpo
from models_registry.prompt import Renderer
from workers.fine_tuning.recipes.batches import split_batch
from workers.fine_tuning.recipes.devices import count, everyones, leaders, number, own_folder
from workers.fine_tuning.recipes.entry import needed, run_recipe
from workers.fine_tuning.recipes.model import pick_device, prepare
from workers.fine_tuning.recipes.objective import Preference, answer_logprobs
from workers.fine_tuning.recipes.process import Parent
from workers.fine_tuning.recipes.rows import Row, read_preferences
from workers.fine_tuning.recipes.training_run import Run, carry_out

REFERENCE = "reference.jsonl"
Pair = tuple[float, float]


def dpo(parent: Parent) -> None:
    spec = parent.spec
    settings, device = Dpo.model_validate(spec.settings), pick_device(spec)
    model, trainable, tokenizer = prepare(spec, settings, device)
    renderer = Renderer.load(tokenizer)
    rows = needed(read_preferences(Path(spec.training), renderer, spec.context_length), "preference")
    held_out = read_preferences(Path(spec.validation), renderer, spec.context_length) if spec.validation else []
    begun = time.monotonic()
    found = reference_logprobs(Path(spec.work), model, rows + held_out, device, spec.pack_tokens)
    parent.tell("looked", tokens=sum(len(row.ids) for row in rows + held_out), seconds=time.monotonic() - begun)
    parent.tell("note", message=f"Reference of {len(found)} pairs at hand")
    known = [row._replace(reference=pair) for row, pair in zip(rows + held_out, found, strict=True)]
    objective = Preference(settings.strength)
    carry_out(Run(parent, model, trainable, objective, known[: len(rows)], known[len(rows) :]))


@torch.no_grad()
def reference_logprobs(
    work: Path, model: Any, rows: Sequence[Row], device: torch.device, pack_tokens: int
) -> list[Pair]:
    """Of both answers of each row, from `work` as far as an earlier attempt got; each device keeps what it computed."""
    found = leaders(known_references(work))
    lengths = [len(row.ids) for row in rows]
    missing = sorted((row for row in range(len(rows)) if row not in found), key=lengths.__getitem__)
    parts = split_batch(missing, lengths, pack_tokens) if missing else []
    folder, own = own_folder(work), dict[int, Pair]()
    folder.mkdir(exist_ok=True)
    with (folder / REFERENCE).open("a") as target:
        # Whatever a crash left of a line ends here.
        target.write("\n")
        for part in parts[number() :: count()]:
            pairs = answer_logprobs(model, [rows[row] for row in part], device).tolist()
            now = {row: (pair[0], pair[1]) for row, pair in zip(part, pairs, strict=True)}
            target.write(json.dumps(now) + "\n")
            target.flush()
            own |= now
    for each in everyones([own]):
        found |= each
    return [found[row] for row in range(len(rows))]


def known_references(work: Path) -> dict[int, Pair]:
    """Row → pair, of each whole line; a torn one is as good as none."""
    found: dict[int, Pair] = {}
    for file in (work / REFERENCE, *sorted(work.glob(f"device-*/{REFERENCE}"))):
        for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
            with suppress(json.JSONDecodeError):
                found |= {int(row): (pair[0], pair[1]) for row, pair in json.loads(line).items()}
    return found


if __name__ == "__main__":
    run_recipe(dpo)
