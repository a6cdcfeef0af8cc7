"""A child's step reports as the job's events: written in small batches, each step once however often it was resumed."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from app.database import transaction
from app.fine_tuning import progress
from app.fine_tuning.events import Event
from workers.fine_tuning.spec import Report

PERIOD = 0.5
# Longer jobs tell the mean of several steps at once, so that a curve stays this many points.
MOST_POINTS = 1000

EVALUATED = {"valid_loss", "full_valid_loss"}
SHOWN = ("valid_", "full_valid_", "reward_", "unwanted_")


class MetricsLog:
    """Raises LostLease when the job is no longer this worker's."""

    def __init__(
        self, job_id: str, token: int, told: int, messages: set[str], remembered: Sequence[Mapping[str, Any]]
    ) -> None:
        """`told`, `messages`: the last step and all messages so far. `remembered`: the steps up to the checkpoint that
        this run goes on from.
        """
        self._job_id, self._token, self._told = job_id, token, told
        self._messages, self._remembered = messages, remembered
        self._total, self._stride, self._first = 0, 1, 0
        self._last: Mapping[str, Any] = {}
        self._looked: Counter[str] = Counter()
        self._events: list[Event] = []
        self._unsaid: list[Mapping[str, Any]] = []
        self._eta: float | None = None
        self._flushed = 0.0

    def add(self, report: Report) -> None:
        if report.event == "begin":
            self._total, self._first = report.data["total_steps"], report.data["step"]
            self._stride = math.ceil(self._total / MOST_POINTS)
            # A checkpoint may be ahead of the events: the worker died before it wrote them.
            for data in self._remembered:
                self._add_step(data)
            if report.data["step"]:
                self._events.append(Event(f"Resumed at step {report.data['step']}/{self._total}"))
        elif report.event == "note" and report.data["message"] not in self._messages:
            self._messages.add(report.data["message"])
            self._events.append(Event(report.data["message"], level=report.data.get("level", "info")))
        elif report.event == "step":
            self._eta, self._last = report.data.get("eta_seconds"), report.data
            self._add_step(report.data)
        elif report.event == "looked":
            self._looked.update(report.data)
        if time.monotonic() - self._flushed >= PERIOD:
            self.flush()

    def _add_step(self, data: Mapping[str, Any]) -> None:
        step = data["step"]
        if step <= self._told:
            return
        self._unsaid.append(data)
        if step % self._stride == 0 or step in (1, self._total) or data.keys() & EVALUATED:
            self._events.append(step_event(merged(self._unsaid), self._total))
            self._unsaid, self._told = [], step

    def timing(self) -> dict[str, float] | None:
        """Of a run in one piece, for later estimates: tokens and steps learned in `loop_seconds`, and what was only
        looked at.
        """
        if self._first or not self._last:
            return None
        loop = {"tokens": self._last["tokens"], "steps": self._last["step"], "loop_seconds": self._last["seconds"]}
        return loop | {f"looked_{name}": round(sum, 3) for name, sum in self._looked.items()}

    def flush(self) -> None:
        if self._events or self._eta is not None:
            with transaction() as tx:
                progress.report(tx, self._job_id, self._token, self._events, self._eta)
        self._events, self._eta, self._flushed = [], None, time.monotonic()


def merged(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last of some steps, with the means of what all of them measured in training."""
    last = dict(steps[-1])
    for name in ("loss", "mean_token_accuracy"):
        if all(name in each for each in steps):
            last[name] = round(sum(each[name] for each in steps) / len(steps), 5)
    return last


def step_event(data: dict[str, Any], total: int) -> Event:
    """In OpenAI's words."""
    text = f"Step {data['step']}/{total}: training loss={data['loss']:.2f}"
    figures = {
        "step": data["step"],
        "total_steps": total,
        "train_loss": data["loss"],
        "eta_seconds": data.get("eta_seconds"),
    }
    if "tokens" in data:
        figures["tokens_per_second"] = round(data["tokens"] / max(data["seconds"], 1e-6), 1)
    if "mean_token_accuracy" in data:
        figures["train_mean_token_accuracy"] = data["mean_token_accuracy"]
    if "valid_loss" in data:
        text += f", validation loss={data['valid_loss']:.2f}"
    figures |= {name: value for name, value in data.items() if name.startswith(SHOWN)}
    return Event(text, type="metrics", data=figures)
