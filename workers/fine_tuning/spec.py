"""What passes between the task and its child process: one JSON spec in, JSON lines out. Imports no torch."""

from typing import Any, Literal

from pydantic import BaseModel

CANCEL = "cancel"
STOP = "stop"
BUSY, IDLE = "busy", "idle"
PACK_TOKENS = 2048


class JobSpec(BaseModel):
    """One training run. Paths are local; `seconds_between_checkpoints` 0 means after each step.

    `parent`: the folder of an adapter to go on from; its rank and targets then hold. `method` names the recipe,
    `settings` are those of app.fine_tuning.methods; `pack_tokens`: of a micro-batch.
    `yield_to_generation`: the longest wait between two steps, seconds. `min_free_bytes`: what a checkpoint must leave
    free on the disk. `devices`: processes that share the job, `number`: which of them this is, `meeting`: the file by
    which they find each other (recipes/devices.py).
    """

    method: str = "supervised"
    settings: dict[str, Any] = {}
    model_changes: list[dict[str, Any]] = []
    peak_rate: float = 1e-3
    pack_tokens: int = PACK_TOKENS
    base: str
    parent: str | None = None
    training: str
    validation: str | None = None
    work: str
    seed: int
    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    rank: int
    early_stopping_patience: int = 0
    keep: str = "last"
    context_length: int
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    nice: int = 0
    seconds_between_checkpoints: float = 10.0
    yield_to_generation: float = 0.0
    min_free_bytes: int = 0
    devices: int = 1
    number: int = 0
    meeting: str = ""


class Report(BaseModel):
    """One line of the child's output.

    `begin`: rows, tokens, total_steps, step (where it resumes). `step`: step, loss, mean_token_accuracy, tokens
    learned in so many seconds, eta_seconds, lr, and valid_loss, valid_mean_token_accuracy at some steps. `looked`:
    tokens, seconds of a pass that learned nothing (an evaluation, DPO's reference). `saved`: a checkpoint is on disk.
    `epoch`: step, folder, metrics of a model to keep and remove. `done`: folder, csv, metrics, trained_tokens, samples,
    peak_memory_bytes of a device with memory of its own. Both have facts where the folder holds a whole model.
    `stopped`: as asked. `refused`: code, message, param. `note`: a message for the job's owner, told once. `broken`:
    code, message.
    """

    event: Literal["begin", "step", "saved", "epoch", "done", "stopped", "refused", "note", "broken", "looked"]
    data: dict[str, Any] = {}
