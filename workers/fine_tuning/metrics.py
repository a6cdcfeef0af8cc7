"""A child's step reports as the job's events: written in small batches, each step once however often it was resumed."""

import time
from typing import Any

from app.database import transaction
from app.fine_tuning import progress
from app.fine_tuning.events import Event
from workers.fine_tuning.spec import Report

PERIOD = 0.5


class MetricsLog:
    """Raises LostLease when the job is no longer this worker's."""

    def __init__(self, job_id: str, token: int, told: int) -> None:
        self._job_id, self._token, self._told = job_id, token, told
        self._total = 0
        self._events: list[Event] = []
        self._eta: float | None = None
        self._flushed = 0.0

    def add(self, report: Report) -> None:
        if report.event == "begin":
            self._total = report.data["total_steps"]
            if report.data["step"]:
                self._events.append(Event(f"Resumed at step {report.data['step']}/{self._total}"))
        elif report.event == "note":
            self._events.append(Event(report.data["message"], level=report.data.get("level", "info")))
        elif report.event == "step":
            self._eta = report.data["eta_seconds"]
            if report.data["step"] > self._told:
                self._events.append(step_event(report.data, self._total))
        if time.monotonic() - self._flushed >= PERIOD:
            self.flush()

    def flush(self) -> None:
        if self._events or self._eta is not None:
            with transaction() as tx:
                progress.report(tx, self._job_id, self._token, self._events, self._eta)
        self._events, self._eta, self._flushed = [], None, time.monotonic()


def step_event(data: dict[str, Any], total: int) -> Event:
    """In OpenAI's words."""
    text = f"Step {data['step']}/{total}: training loss={data['loss']:.2f}"
    figures = {
        "step": data["step"],
        "total_steps": total,
        "train_loss": data["loss"],
        "eta_seconds": data["eta_seconds"],
        "tokens_per_second": round(data["tokens"] / max(data["seconds"], 1e-6), 1),
    }
    if "mean_token_accuracy" in data:
        figures["train_mean_token_accuracy"] = data["mean_token_accuracy"]
    if "valid_loss" in data:
        text += f", validation loss={data['valid_loss']:.2f}"
    figures |= {name: value for name, value in data.items() if name.startswith(("valid_", "reward_", "unwanted_"))}
    return Event(text, type="metrics", data=figures)
