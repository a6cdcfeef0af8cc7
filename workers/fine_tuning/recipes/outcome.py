"""What a run leaves: the model, its figures before and after, what it answers."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models_registry.prompt import Renderer
from workers.fine_tuning.recipes.devices import everyones, leads
from workers.fine_tuning.recipes.objective import perplexity

if TYPE_CHECKING:
    from workers.fine_tuning.recipes.training_run import Run


def samples(run: "Run") -> list[dict[str, str]]:
    renderer = Renderer.load(getattr(run.trainable, "tokenizer", Path(run.spec.base)))
    texts = [renderer.decode(prompt) for prompt in run.prompts]
    rows = zip(texts, run.said_before, run.say(), strict=True)
    # A database of texts has no place for NUL, which a row may hold and a model may say.
    clean = [[text.replace("\0", "") for text in row] for row in rows]
    return [{"prompt": prompt, "before": before, "after": after} for prompt, before, after in clean]


def final_metrics(run: "Run", step: int, *, full: bool) -> dict[str, Any]:
    last = run.history[step - 1]
    shown = {name: value for name, value in last.items() if name not in ("step", "lr", "loss") and "valid" not in name}
    metrics: dict[str, Any] = {"step": step, "train_loss": last["loss"]}
    metrics |= {f"train_{name}": value for name, value in shown.items()}
    metrics |= {name: value for name, value in last.items() if name.startswith(("valid_", "full_valid_"))}
    if run.held_out and full:
        found = run.evaluate(run.held_out)
        metrics |= {f"full_valid_{name}": value for name, value in found.items()}
        if "mean_token_accuracy" in found:
            metrics["full_valid_perplexity"] = perplexity(found["loss"])
    return metrics


def finish(run: "Run") -> None:
    """Keep and measure the result, write the figures of every step, report."""
    folder = run.work / "result"
    kept, done = run.step, run.step // run.per_epoch
    if run.spec.keep == "best" and run.best.step not in (0, run.step):
        kept = run.best.step
        # Interrupted from here on, the run still resumes with its last weights.
        run.save()
        run.trainable.weights.copy_(run.trainable.part(run.best.weights()))
        run.trainable.publish()
        run.parent.tell("note", message=f"Kept the state after step {kept}, the best on the held-out rows")
    facts = run.trainable.save(folder)
    metrics = final_metrics(run, kept, full=True)
    metrics |= {f"base_valid_{name}": value for name, value in run.base.items()}
    if "mean_token_accuracy" in run.base:
        metrics["base_valid_perplexity"] = perplexity(run.base["loss"])
    extra: dict[str, Any] = {} if facts is None else {"facts": facts.model_dump()}
    if run.device.type == "cuda":
        extra["peak_memory_bytes"] = sum(everyones([torch.cuda.max_memory_allocated(run.device)]))
    extra |= {"trained_tokens": sum(run.lengths) * done, "samples": samples(run)}
    if leads():
        figures = write_figures(run)
        run.parent.tell("done", folder=str(folder), csv=str(figures), metrics=metrics, **extra)


def write_figures(run: "Run") -> Path:
    """The figures of every step."""
    figures = run.work / "step_metrics.csv"
    columns = ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    keys = ["step", "loss", "mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    more = sorted({name for each in run.history for name in each} - {*keys, "lr"})
    with figures.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(columns + more)
        writer.writerows([each.get(key, "") for key in keys + more] for each in run.history)
    return figures
