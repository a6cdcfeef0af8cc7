"""Supervised fine-tuning of a LoRA adapter, from top to bottom: `python -m workers.fine_tuning.recipes.supervised`.

Load → data → resume → loop (checkpoint, evaluate) → export. The spec comes as one JSON line on stdin, reports go out
as JSON lines (workers/fine_tuning/spec.py). On a CPU a resumed run gives the very bytes of an uninterrupted one.
"""

import csv
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from models_registry.prompt import Renderer
from workers.fine_tuning.recipes import packing
from workers.fine_tuning.recipes.batches import epoch_batches, learning_rate, split_batch, steps_per_epoch
from workers.fine_tuning.recipes.checkpoint import load_checkpoint, save_checkpoint
from workers.fine_tuning.recipes.lora import Adapter, adapter_from, new_adapter
from workers.fine_tuning.recipes.loss import HeadLoss
from workers.fine_tuning.recipes.process import Parent
from workers.fine_tuning.recipes.rows import Row, read_rows
from workers.fine_tuning.spec import CANCEL, JobSpec

PEAK_RATE = 1e-3
CLIP = 1.0
PACK_TOKENS = 2048
SAMPLE_ROWS = 16
SAMPLES_PER_RUN = 4
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main() -> None:
    parent = Parent()
    spec = parent.spec
    device = pick_device(spec)
    model = load_base(spec, device)
    adapter = adapter_from(model, Path(spec.parent)) if spec.parent else new_adapter(model, spec.rank, spec.seed)
    renderer = Renderer.load(Path(spec.base))
    rows = read_rows(Path(spec.training), renderer, spec.context_length)
    held_out = read_rows(Path(spec.validation), renderer, spec.context_length) if spec.validation else []
    if not rows:
        parent.tell("refused", code="invalid_training_file", message="The training file has no row to learn from.")
        return
    run = Run(spec, parent, model, adapter, rows, held_out, device)
    run.resume()
    if not run.train():
        parent.tell("stopped")
        return
    folder = Path(spec.work) / "adapter"
    adapter.save(folder)
    run.finish(folder)


class Run:
    """The state of one job: the optimizer's moments, the steps done and their figures."""

    def __init__(
        self,
        spec: JobSpec,
        parent: Parent,
        model: nn.Module,
        adapter: Adapter,
        rows: list[Row],
        held_out: list[Row],
        device: torch.device,
    ) -> None:
        self.spec, self.parent, self.model, self.adapter = spec, parent, model, adapter
        self.rows, self.held_out, self.device = rows, held_out, device
        self.work = Path(spec.work)
        self.lengths = [len(ids) for ids, _ in rows]
        self.per_epoch = steps_per_epoch(len(rows), spec.batch_size)
        self.total = self.per_epoch * spec.n_epochs
        self.vector = nn.Parameter(adapter.weights)
        self.vector.grad = adapter.gradients
        self.optimizer = torch.optim.AdamW([self.vector], lr=0.0, weight_decay=0.0, fused=device.type == "cuda")
        self.step = 0
        self.base_loss: float | None = None
        self.history: list[dict[str, float]] = []

    def resume(self) -> None:
        """Stand where the newest checkpoint stood; at a fresh start measure the base on the held-out rows."""
        found = load_checkpoint(self.work)
        if found:
            tensors, state = found
            self.adapter.weights.copy_(tensors["weights"])
            moments = {name: tensors[name].to(self.device) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[self.vector] = {"step": torch.tensor(float(state["step"])), **moments}
            self.step, self.base_loss, self.history = state["step"], state["base_loss"], state["history"]
        elif self.held_out:
            self.base_loss = self.evaluate(self.held_out)[0]
        tokens = sum(self.lengths)
        self.parent.tell("begin", rows=len(self.rows), tokens=tokens, total_steps=self.total, step=self.step)

    def train(self) -> bool:
        """The loop; False when the parent asked to end it. A stop is checkpointed, a cancel is not."""
        began, saved, first = time.monotonic(), time.monotonic(), self.step
        tokens_done = 0
        while self.step < self.total:
            if self.parent.asked:
                if self.parent.asked != CANCEL:
                    self.save()
                return False
            epoch, at = divmod(self.step, self.per_epoch)
            if at == 0 or self.step == first:
                batches = epoch_batches(self.lengths, self.spec.batch_size, self.spec.seed, epoch)
            figures = self.advance(batches[at])
            tokens_done += sum(self.lengths[row] for row in batches[at])
            seconds = time.monotonic() - began
            left = seconds / (self.step - first) * (self.total - self.step)
            self.parent.tell(
                "step", **figures, tokens=tokens_done, seconds=round(seconds, 3), eta_seconds=round(left, 1)
            )
            if time.monotonic() - saved >= self.spec.seconds_between_checkpoints and self.step < self.total:
                self.save()
                saved = time.monotonic()
            if self.step % self.per_epoch == 0 and self.step < self.total:
                self.keep_epoch(epoch + 1)
        return True

    def advance(self, batch: Sequence[int]) -> dict[str, float]:
        """One optimizer step over the rows of `batch`; its loss and accuracy are means over target tokens."""
        rate = learning_rate(self.step, self.total, PEAK_RATE * self.spec.learning_rate_multiplier)
        targets = sum(sum(self.rows[row][1][1:]) for row in batch)
        loss, correct = 0.0, 0
        self.adapter.gradients.zero_()
        for part in split_batch(batch, self.lengths, PACK_TOKENS):
            part_loss, part_correct = forward(self.model, packing.pack([self.rows[row] for row in part], self.device))
            (part_loss / targets).backward()
            loss, correct = loss + part_loss.item(), correct + int(part_correct)
        norm = torch.linalg.vector_norm(self.adapter.gradients)
        self.adapter.gradients.mul_(torch.clamp(CLIP / (norm + 1e-6), max=1.0))
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.step += 1
        figures = {
            "step": self.step,
            "loss": round(loss / targets, 5),
            "mean_token_accuracy": round(correct / targets, 5),
            "lr": rate,
        }
        if self.held_out and self.step % max(10, self.total // (SAMPLES_PER_RUN + 1)) == 0 and self.step < self.total:
            valid, accuracy = self.evaluate(self.held_out[:SAMPLE_ROWS])
            figures |= {"valid_loss": valid, "valid_mean_token_accuracy": accuracy}
        self.history.append(figures)
        return figures

    @torch.no_grad()
    def evaluate(self, rows: Sequence[Row]) -> tuple[float, float]:
        """Mean loss and accuracy over the target tokens of `rows`."""
        loss, correct, targets = 0.0, 0, 0
        lengths = [len(ids) for ids, _ in rows]
        for part in split_batch(sorted(range(len(rows)), key=lengths.__getitem__), lengths, PACK_TOKENS // 2):
            pack = packing.pack([rows[row] for row in part], self.device)
            part_loss, part_correct = forward(self.model, pack)
            loss, correct = loss + part_loss.item(), correct + int(part_correct)
            targets += len(pack.labels)
        return round(loss / targets, 5), round(correct / targets, 5)

    def save(self) -> None:
        moments = self.optimizer.state[self.vector] if self.step else None
        if moments is None or not moments:
            return
        tensors = {"weights": self.adapter.weights, "exp_avg": moments["exp_avg"], "exp_avg_sq": moments["exp_avg_sq"]}
        save_checkpoint(self.work, self.step, tensors, {"base_loss": self.base_loss, "history": self.history})
        self.parent.tell("saved", step=self.step)

    def keep_epoch(self, epoch: int) -> None:
        """Offer this epoch's adapter as a model of its own."""
        folder = self.work / f"epoch-{epoch}"
        self.adapter.save(folder)
        self.parent.tell("epoch", step=self.step, folder=str(folder), metrics=self.final_metrics(full=False))

    def final_metrics(self, *, full: bool) -> dict[str, Any]:
        last = self.history[-1]
        metrics: dict[str, Any] = {
            "step": self.step,
            "train_loss": last["loss"],
            "train_mean_token_accuracy": last["mean_token_accuracy"],
        }
        if self.held_out and full:
            loss, accuracy = self.evaluate(self.held_out)
            metrics |= {"full_valid_loss": loss, "full_valid_mean_token_accuracy": accuracy}
        return metrics

    def finish(self, folder: Path) -> None:
        """Measure the result, write the figures of every step, report."""
        metrics = self.final_metrics(full=True) | {"base_valid_loss": self.base_loss}
        figures = self.work / "step_metrics.csv"
        columns = ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
        keys = ["step", "loss", "mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy"]
        with figures.open("w", newline="") as target:
            writer = csv.writer(target)
            writer.writerow(columns)
            writer.writerows([each.get(key, "") for key in keys] for each in self.history)
        trained = sum(self.lengths) * self.spec.n_epochs
        self.parent.tell("done", folder=str(folder), csv=str(figures), metrics=metrics, trained_tokens=trained)


def forward(model: Any, pack: packing.Pack) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of losses and number of right guesses over the targets of a pack."""
    hidden = model.base_model(
        input_ids=pack.ids, position_ids=pack.positions, attention_mask=None, use_cache=False, pack=pack
    ).last_hidden_state
    softcap = getattr(model.config, "final_logit_softcapping", None)
    loss, correct = HeadLoss.apply(hidden[0, pack.targets], model.get_output_embeddings().weight, pack.labels, softcap)
    return loss, correct


def load_base(spec: JobSpec, device: torch.device) -> Any:
    """The frozen base; dropout off, attention packed."""
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        spec.base, dtype=pick_dtype(spec, device), attn_implementation=packing.NAME, local_files_only=True
    )
    return model.to(device).requires_grad_(False).eval()


def pick_device(spec: JobSpec) -> torch.device:
    if spec.threads:
        torch.set_num_threads(spec.threads)
    if spec.device != "auto":
        return torch.device(spec.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(spec: JobSpec, device: torch.device) -> torch.dtype:
    """`auto`: bf16 where the hardware multiplies it, else fp32."""
    if spec.dtype != "auto":
        return DTYPES[spec.dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    has = torch.cpu.get_capabilities()
    return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else torch.float32


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
    sys.stdout.flush()
    os._exit(0)
