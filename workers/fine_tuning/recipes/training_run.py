"""The loop that every recipe shares: resume → steps (checkpoint, evaluate) → result.

On a CPU a resumed run gives the very bytes of an uninterrupted one: which rows make a step follows from the seed, and
the state on disk is the whole state.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.fine_tuning.rules import SAMPLE_ROWS, SAMPLES_PER_RUN, STEPS_PER_SAMPLE
from workers.fine_tuning.recipes.batches import epoch_batches, learning_rate, share, steps_per_epoch
from workers.fine_tuning.recipes.best import BestSoFar
from workers.fine_tuning.recipes.checkpoint import load_checkpoint, save_checkpoint
from workers.fine_tuning.recipes.devices import count, leaders, leads, number, total
from workers.fine_tuning.recipes.epoch import laid_out, lay_out
from workers.fine_tuning.recipes.lora import Adapter
from workers.fine_tuning.recipes.objective import Objective
from workers.fine_tuning.recipes.outcome import final_metrics, finish
from workers.fine_tuning.recipes.process import Interrupted, Parent
from workers.fine_tuning.recipes.refusal import Refused
from workers.fine_tuning.recipes.rows import Row
from workers.fine_tuning.recipes.samples import answers, prompts_of
from workers.fine_tuning.recipes.trainable import Trainable

CLIP = 1.0
# Of a run whose whole model learns, the last epochs whose models are kept: each takes as much disk as a base.
WHOLE_CHECKPOINTS = 3
# Of the time of a run, one part in so many may go into checkpoints.
SAVING_SHARE = 20
DIVERGED = (
    "The {what} became {value} at step {step}. The learning rate may be too high: try a learning_rate_multiplier "
    "of a tenth, and look at the rows for broken text."
)
OUT_OF_MEMORY = (
    "The training process ran out of memory at step {step}, also with half the tokens at once. Use shorter rows, a "
    "smaller rank or a smaller model."
)


class Run:
    """The state of one job: the optimizer's moments, the steps done and their figures.

    `unfinished`: the figures of the last step while what is due after it is still to be done; `looking`: seconds that
    evaluations took.

    `decay` is taken off the first `decayed` weights at each step, times the learning rate; `warmup` in steps at most.
    """

    def __init__(
        self,
        parent: Parent,
        model: nn.Module,
        trainable: Trainable,
        objective: Objective,
        rows: list[Row],
        held_out: list[Row],
        *,
        decay: float = 0.0,
        decayed: int = 0,
        warmup: int = 20,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.spec, self.parent, self.model, self.trainable = parent.spec, parent, model, trainable
        self.objective, self.rows, self.held_out = objective, rows, held_out
        self.decay, self.decayed, self.warmup = decay, decayed, warmup
        self.device = trainable.weights.device
        self.work = Path(self.spec.work)
        self.lengths = [len(row.ids) for row in rows]
        self.per_epoch = steps_per_epoch(len(rows), self.spec.batch_size)
        self.total = self.per_epoch * self.spec.n_epochs
        self.vector = nn.Parameter(trainable.weights)
        self.vector.grad = trainable.gradients
        self.optimizer = torch.optim.AdamW(
            [self.vector], lr=0.0, betas=betas, weight_decay=0.0, fused=self.device.type == "cuda"
        )
        self.pack_tokens, self.halved = self.spec.pack_tokens, False
        self.step = 0
        self.base: dict[str, float] = {}
        self.prompts = prompts_of(held_out)
        self.said_before: list[str] = []
        self.best = BestSoFar(self.work, self.spec.early_stopping_patience)
        self.judged = bool(held_out) and (self.spec.keep == "best" or self.spec.early_stopping_patience > 0)
        self.history: list[dict[str, float]] = []
        self.unfinished: dict[str, float] | None = None
        self.looking = 0.0

    def resume(self) -> None:
        """Stand where the newest checkpoint stood; at a fresh start measure the base on the held-out rows."""
        found = load_checkpoint(self.work)
        if found:
            tensors, state = found
            self.trainable.weights.copy_(self.trainable.part(tensors["weights"]))
            self.trainable.publish()
            moments = {name: self.trainable.part(tensors[name]).to(self.device) for name in ("exp_avg", "exp_avg_sq")}
            # torch's fused step, on a GPU, wants its counter there too.
            done = torch.tensor(float(state["step"]), device=self.device)
            self.optimizer.state[self.vector] = {"step": done, **moments}
            self.step, self.base, self.history = state["step"], state["base"], state["history"]
            self.said_before, self.unfinished = state["said_before"], state.get("unfinished")
            self.best.restore(state["best"])
            self.halved = state.get("halved", False)
            self.pack_tokens = self.spec.pack_tokens // (2 if self.halved else 1)
        elif self.held_out:
            self.base, self.said_before = self.evaluate(self.held_out), self.say()
        tokens = sum(self.lengths)
        self.parent.tell("begin", rows=len(self.rows), tokens=tokens, total_steps=self.total, step=self.step)
        for epoch in range(1, len(self.history) // self.per_epoch + 1):
            self.keep_epoch(epoch)

    def train(self) -> None:
        """The loop. Raises Interrupted when the parent asks to end it; `save` then keeps its place."""
        if self.unfinished is not None:
            self.finish_step(self.unfinished)
        began, saved, first = time.monotonic(), time.monotonic(), self.step
        tokens_done, pause, looked = 0, self.spec.seconds_between_checkpoints, self.looking
        while self.step < self.total and not self.best.exhausted:
            self.parent.give_way()
            self.obey()
            epoch, at = divmod(self.step, self.per_epoch)
            if at == 0 or self.step == first:
                batches = epoch_batches(self.lengths, self.spec.batch_size, self.spec.seed, epoch)
            figures = self.advance(batches[at])
            tokens_done += sum(self.lengths[row] for row in batches[at])
            seconds = time.monotonic() - began
            left = seconds / (self.step - first) * (self.total - self.step)
            learning = round(seconds - (self.looking - looked), 3)
            self.finish_step(figures, tokens=tokens_done, seconds=learning, eta_seconds=round(left, 1))
            if leaders(time.monotonic() - saved >= pause) and self.step < self.total:
                begun = time.monotonic()
                self.save()
                saved = time.monotonic()
                pause = self.spec.seconds_between_checkpoints and max(pause, SAVING_SHARE * (saved - begun))

    def advance(self, batch: Sequence[int]) -> dict[str, float]:
        """One optimizer step over the rows of `batch`; its figures are means over what counts in them."""
        rate = learning_rate(
            self.step, self.total, self.spec.peak_rate * self.spec.learning_rate_multiplier, self.warmup
        )
        sums = self.gradients(batch)
        figures = self.objective.figures(sums)
        norm = self.trainable.add_up()
        for what, value in (("loss", figures["loss"]), ("gradient", norm.item())):
            if not torch.isfinite(torch.tensor(value)):
                message = DIVERGED.format(what=what, value=value, step=self.step + 1)
                raise Refused("training_diverged", message, "hyperparameters.learning_rate_multiplier")
        self.trainable.gradients.mul_(torch.clamp(CLIP / (norm + 1e-6), max=1.0))
        if self.decay:
            self.trainable.weights[: self.decayed].mul_(1 - rate * self.decay)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.trainable.publish()
        self.step += 1
        return {"step": self.step, **rounded(figures), "lr": rate}

    def finish_step(self, figures: dict[str, float], **timing: Any) -> None:
        """What is due after a step: its evaluation, its report, the end of its epoch. Interrupted, all of it is due
        again when the run resumes.
        """
        self.unfinished = figures
        ends_epoch, found, judged = self.step % self.per_epoch == 0, {}, {}
        every = max(STEPS_PER_SAMPLE, self.total // (SAMPLES_PER_RUN + 1))
        if self.held_out and self.step % every == 0 and self.step < self.total:
            found = self.evaluate(self.held_out[:SAMPLE_ROWS])
        if ends_epoch and self.judged:
            judged = self.evaluate(self.held_out)
        self.unfinished = None
        self.history.append(
            figures
            | {f"valid_{name}": value for name, value in found.items()}
            | {f"full_valid_{name}": value for name, value in judged.items()}
        )
        self.parent.tell("step", **self.history[-1], **timing)
        if ends_epoch:
            self.end_epoch(self.step // self.per_epoch, judged.get("loss"))

    def gradients(self, batch: Sequence[int]) -> Counter[str]:
        """Add up the batch's gradients in micro-batches; out of memory, once with half as many tokens at a time."""
        try:
            return self.accumulate(batch)
        except (RuntimeError, MemoryError) as error:
            # What a device was about to share is lost to the others: they all begin again, smaller (trouble.py).
            if not out_of_memory(error) or count() > 1:
                raise
            if self.halved:
                raise Refused("out_of_memory", OUT_OF_MEMORY.format(step=self.step + 1)) from error
        self.halved, self.pack_tokens = True, self.pack_tokens // 2
        text = f"Out of memory at step {self.step + 1}: going on with {self.pack_tokens} tokens at once"
        self.parent.tell("note", message=text, level="warn")
        return self.gradients(batch)

    def accumulate(self, batch: Sequence[int]) -> Counter[str]:
        self.trainable.gradients.zero_()
        size = sum(self.objective.size(self.rows[row]) for row in batch)
        sums: Counter[str] = Counter()
        for part in self.parts(batch, self.lengths, self.pack_tokens):
            rows = [self.rows[row] for row in part or batch[:1]]
            loss, found = self.objective.measure(self.model, rows, self.device)
            (loss / size if part else 0 * loss).backward()
            sums.update(found if part else {})
        return total(sums)

    def parts(self, rows: Sequence[int], lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
        """This device's micro-batches, as long as the parent does not ask to end."""
        for part in share(rows, lengths, max_tokens, number(), count()):
            self.obey()
            yield part

    def obey(self) -> None:
        """Called by all devices together, wherever what was done so far can be saved. Raises Interrupted."""
        if leaders(self.parent.ends()):
            raise Interrupted

    @torch.no_grad()
    def evaluate(self, rows: Sequence[Row]) -> dict[str, float]:
        """The objective's means over `rows`; `loss` is that of the wanted ones where they can be told apart."""
        sums: Counter[str] = Counter()
        lengths, begun = [len(row.ids) for row in rows], time.monotonic()
        order = sorted(range(len(rows)), key=lengths.__getitem__)
        for part in self.parts(order, lengths, self.pack_tokens // 2):
            found = self.objective.measure(self.model, [rows[row] for row in part or order[:1]], self.device)[1]
            sums.update(found if part else {})
        sums, seconds = total(sums), time.monotonic() - begun
        self.looking += seconds
        self.parent.tell("looked", tokens=sum(lengths), seconds=seconds)
        figures = self.objective.figures(sums)
        if sums["wanted"]:
            figures["loss"] = sums["wanted_loss"] / sums["wanted"]
        return rounded(figures)

    def save(self) -> None:
        moments = self.optimizer.state[self.vector] if self.step else None
        if moments is None or not moments:
            return
        own: dict[str, Tensor] = {name: moments[name] for name in ("exp_avg", "exp_avg_sq")}
        own["weights"] = self.trainable.weights
        tensors = {name: self.trainable.whole(tensor) for name, tensor in own.items()}
        state = {"base": self.base, "history": self.history, "halved": self.halved}
        state |= {"said_before": self.said_before, "best": self.best.state(), "unfinished": self.unfinished}
        if leads() and not save_checkpoint(self.work, self.step, tensors, state, self.spec.min_free_bytes):
            return
        self.parent.tell("saved", step=self.step)

    def end_epoch(self, epoch: int, loss: float | None) -> None:
        """Judge by its held-out loss, if that counts, and offer what an epoch made."""
        if loss is not None:
            self.best.judge(self.step, loss, self.trainable.whole(self.trainable.weights))
            self.parent.tell("note", message=f"Held-out loss after epoch {epoch}: {loss:.4f}")
        self.keep_epoch(epoch)
        if self.best.exhausted:
            text = f"Stopped early: the held-out loss has not fallen for {self.best.waited} epochs"
            self.parent.tell("note", message=text)

    def keep_epoch(self, epoch: int) -> None:
        """Offer what an epoch made as a model of its own, unless it is the result.

        A resumed run offers the earlier ones again: its parent may not have heard of them.
        """
        step, folder = epoch * self.per_epoch, self.work / f"epoch-{epoch}"
        early = not isinstance(self.trainable, Adapter) and epoch <= self.spec.n_epochs - WHOLE_CHECKPOINTS
        if early or step == self.total or (step == self.step and self.best.exhausted):
            return
        if step == self.step:
            lay_out(self.trainable, folder, self.spec.min_free_bytes)
        if leads() and (offered := laid_out(folder)):
            self.parent.tell("epoch", step=step, metrics=final_metrics(self, step, full=False), **offered)

    def say(self) -> list[str]:
        tokenizer = getattr(self.trainable, "tokenizer", Path(self.spec.base))
        return answers(self.model, tokenizer, self.prompts, self.device) if self.prompts else []


def rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in figures.items()}


def out_of_memory(error: Exception) -> bool:
    """CUDA has a class for it; on a CPU torch raises a RuntimeError that says so."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def carry_out(run: Run) -> None:
    """From the newest checkpoint to the result."""
    run.resume()
    run.parent.hold_on()
    try:
        run.train()
        finish(run)
    except Interrupted:
        run.save()
        run.parent.tell("stopped")
