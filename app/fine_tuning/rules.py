"""Pure decisions of fine-tuning: hyperparameters, what `auto` means, what it costs and takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidHyperparameter, InvalidValue

AUTO = "auto"
COMMON = frozenset({"n_epochs", "batch_size", "learning_rate_multiplier", "rank", "early_stopping_patience", "keep"})
OFF, LAST, BEST = "off", "last", "best"
OPEN = ("validating_files", "queued", "running", "paused")
WAITING = ("validating_files", "queued")
UNCLAIMED = (*WAITING, "paused")
DEFAULT_RANK = 8
MAX_EPOCHS, MAX_BATCH, MAX_MULTIPLIER, MAX_RANK = 50, 256, 100.0, 64
AUTO_EPOCH_ROWS = 200
MAX_AUTO_EPOCHS = 3
AUTO_BATCH = 8
# Bytes the training process needs besides weights and activations, and activation bytes per token, layer and width.
RUNTIME_BYTES = 700 * 1024 * 1024
ACTIVATION_FACTOR = 40
PACK_TOKENS = 2048
# The start value of estimates, until a job of the base and method has finished in this store: what two ordinary CPU
# cores multiply in bf16.
FLOPS_PER_SECOND = 300e9
START_SECONDS = 12.0
# At so many steps of a run, and never more often than after so many, a few held-out rows are looked at.
SAMPLES_PER_RUN, STEPS_PER_SAMPLE, SAMPLE_ROWS = 4, 10, 16


@dataclass(frozen=True)
class Hyperparameters:
    """As asked for: `auto` where the store shall choose.

    `early_stopping_patience`: training ends once the held-out loss has not fallen for so many epochs; `keep`: the last
    state becomes the model, or the best on the held-out rows.
    """

    n_epochs: int | str = AUTO
    batch_size: int | str = AUTO
    learning_rate_multiplier: float | str = AUTO
    rank: int = DEFAULT_RANK
    early_stopping_patience: int | str = AUTO
    keep: str = AUTO


@dataclass(frozen=True)
class Resolved:
    """As trained with."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    rank: int
    early_stopping_patience: int = 0
    keep: str = LAST


def check_hyperparameters(given: Mapping[str, Any], where: str = "hyperparameters") -> Hyperparameters:
    """Raises InvalidHyperparameter, naming the field."""
    unknown = set(given) - COMMON
    if unknown:
        name = min(unknown)
        raise InvalidHyperparameter(f"Unknown hyperparameter '{name[:80]}'.", param=f"{where}.{name[:80]}")
    multiplier = given.get("learning_rate_multiplier", AUTO)
    if multiplier != AUTO and not (is_number(multiplier) and 0 < multiplier <= MAX_MULTIPLIER):
        raise InvalidHyperparameter(
            f"learning_rate_multiplier must be 'auto' or above 0 and at most {MAX_MULTIPLIER:g}.",
            param=f"{where}.learning_rate_multiplier",
        )
    return Hyperparameters(
        n_epochs=check_count(given, "n_epochs", MAX_EPOCHS, where),
        batch_size=check_count(given, "batch_size", MAX_BATCH, where),
        learning_rate_multiplier=multiplier,
        rank=check_rank(given.get("rank", DEFAULT_RANK), where),
        early_stopping_patience=check_patience(given, where),
        keep=check_keep(given.get("keep", AUTO), where),
    )


def check_count(given: Mapping[str, Any], name: str, most: int, where: str) -> int | str:
    value = given.get(name, AUTO)
    if value == AUTO or (type(value) is int and 1 <= value <= most):
        return value  # type: ignore[no-any-return]
    raise InvalidHyperparameter(f"{name} must be 'auto' or an integer from 1 to {most}.", param=f"{where}.{name}")


def check_patience(given: Mapping[str, Any], where: str) -> int | str:
    value = given.get("early_stopping_patience", AUTO)
    return OFF if value in (OFF, 0) else check_count(given, "early_stopping_patience", MAX_EPOCHS, where)


def check_keep(value: Any, where: str) -> str:
    if value in (AUTO, LAST, BEST):
        return str(value)
    raise InvalidHyperparameter("keep must be 'auto', 'last' or 'best'.", param=f"{where}.keep")


def needs_held_out_rows(asked: Hyperparameters) -> str | None:
    """The hyperparameter that means nothing without a validation file."""
    if isinstance(asked.early_stopping_patience, int):
        return "early_stopping_patience"
    return "keep" if asked.keep == BEST else None


def check_rank(value: Any, where: str) -> int:
    if type(value) is int and 1 <= value <= MAX_RANK:
        return value
    raise InvalidHyperparameter(f"rank must be an integer from 1 to {MAX_RANK}.", param=f"{where}.rank")


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def resolve(asked: Hyperparameters, rows: int) -> Resolved:
    """`auto`: few rows are seen up to three times, batches grow with the rows up to 8, the rate is the recipe's.
    Without being asked nothing stops early; a job that may stop early keeps its best state.
    """
    epochs = max(1, min(MAX_AUTO_EPOCHS, AUTO_EPOCH_ROWS // max(rows, 1)))
    batch = max(1, min(AUTO_BATCH, rows // 8))
    rate = asked.learning_rate_multiplier
    patience = asked.early_stopping_patience if isinstance(asked.early_stopping_patience, int) else 0
    return Resolved(
        n_epochs=asked.n_epochs if isinstance(asked.n_epochs, int) else epochs,
        batch_size=asked.batch_size if isinstance(asked.batch_size, int) else batch,
        learning_rate_multiplier=1.0 if isinstance(rate, str) else float(rate),
        rank=asked.rank,
        early_stopping_patience=patience,
        keep=BEST if asked.keep == BEST or (asked.keep == AUTO and patience) else LAST,
    )


def explain(asked: Hyperparameters, resolved: Resolved, rows: int, peak: float) -> str | None:
    """What `auto` became and why, for the job's owner; `peak`: the rate that a multiplier of 1 stands for."""
    reasons = {
        "n_epochs": f"{rows} rows are seen up to {MAX_AUTO_EPOCHS} times, fewer times the more there are",
        "batch_size": f"an eighth of the rows, at most {AUTO_BATCH}",
        "learning_rate_multiplier": f"the method's own rate, {peak:g} at its peak",
    }
    chosen = [
        f"{name}={getattr(resolved, name)} ({reason})"
        for name, reason in reasons.items()
        if getattr(asked, name) == AUTO
    ]
    return f"auto chose {'; '.join(chosen)}" if chosen else None


def most_tokens(asked: Hyperparameters, file_bytes: int, rows: int | None, tokens: int | None) -> int:
    """The most tokens that training can take: exact once the file is validated, else a token per byte."""
    if rows is None or tokens is None:
        epochs = asked.n_epochs if isinstance(asked.n_epochs, int) else MAX_AUTO_EPOCHS
        return file_bytes * epochs
    return tokens * resolve(asked, rows).n_epochs


def looked_tokens(resolved: Resolved, steps: int, held_out: int, held_out_rows: int) -> int:
    """Held-out tokens that evaluations see: all before, after and, where that judges, behind each epoch; some between.
    `held_out`: tokens of the whole file.
    """
    judged = resolved.n_epochs if resolved.keep == BEST or resolved.early_stopping_patience else 0
    samples = min(SAMPLES_PER_RUN, (steps - 1) // STEPS_PER_SAMPLE)
    share = min(1.0, SAMPLE_ROWS / max(held_out_rows, 1))
    return round(held_out * (2 + judged + samples * share))


def training_price(tokens: int, micros_per_million: int) -> int:
    """Micros, rounded up once."""
    return -(-tokens * micros_per_million // 1_000_000)


def estimated_seconds(tokens: int, looked: int, parameters: int, whole: bool) -> float:
    """Forward and backward: 4 operations per parameter and token, 6 where the `whole` model learns; 2 to look at it."""
    operations = parameters * ((6 if whole else 4) * tokens + 2 * looked)
    return round(START_SECONDS + operations / FLOPS_PER_SECOND, 1)


def peak_memory_bytes(parameters: int, layers: int, hidden_size: int, whole: bool, longest: int = 0) -> int:
    """Frozen weights in 16 bits, once for each way (recipes/frozen.py), the activations of one pack or of the `longest`
    row (tokens), the runtime; where the `whole` model learns, weights in 16 bits, and those, gradients and two moments
    in 32.
    """
    activations = ACTIVATION_FACTOR * layers * hidden_size * max(PACK_TOKENS, longest)
    return (18 if whole else 4) * parameters + activations + RUNTIME_BYTES


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """At most 16 pairs; keys to 64 characters, values to 512."""
    if len(metadata) > 16 or any(not 0 < len(key) <= 64 or len(value) > 512 for key, value in metadata.items()):
        raise InvalidValue("metadata has at most 16 pairs, keys to 64 and values to 512 characters.", param="metadata")
    return dict(metadata)
