"""How long a job will take and what memory it needs: as the last jobs of its kind did, else as arithmetic says."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.fine_tuning.methods import Method
from app.fine_tuning.rules import estimated_seconds, peak_memory_bytes
from app.fine_tuning.tables import FineTuningJob
from app.variants.tables import BaseModel

REMEMBERED_JOBS = 20
ALIKE = 5


@dataclass(frozen=True)
class Work:
    """What training comes to: `tokens` in `steps` steps."""

    tokens: int
    steps: int


@dataclass(frozen=True)
class Expectation:
    """`seconds` from the claim to the model, without the wait in the queue; `jobs`: how many measured ones stand
    behind it, 0 for the start value.
    """

    seconds: float
    memory_bytes: int
    jobs: int


def expect(tx: Session, base: BaseModel, method: Method, work: Work) -> Expectation:
    found = measured(tx, base.id, method)
    parameters, shape = base.parameters or 0, base.shape
    arithmetic = peak_memory_bytes(parameters, shape.get("layers", 0), shape.get("hidden_size", 0))
    if method.makes_base:
        # Weights, gradients and two moments in 32 bits.
        arithmetic += 16 * parameters
    if not found:
        return Expectation(estimated_seconds(work.tokens, parameters), arithmetic, 0)
    memory = max(int(each.get("peak_memory_bytes", 0)) for each in found) or arithmetic
    return Expectation(round(seconds_of(work, found), 1), memory, len(found))


def measured(tx: Session, base_id: str, method: Method) -> list[dict[str, Any]]:
    """The timings of the newest jobs that ran in one piece: tokens, steps, loop_seconds, seconds, peak_memory_bytes."""
    timing = FineTuningJob.result["timing"]
    query = select(timing).where(
        FineTuningJob.base_id == base_id,
        FineTuningJob.status == "succeeded",
        FineTuningJob.method["type"].as_string() == method.type,
        FineTuningJob.method["settings"]["adapter"].as_string() == method.settings.adapter,
        timing["loop_seconds"].as_float() > 0,
    )
    return list(tx.scalars(query.order_by(FineTuningJob.finished_at.desc()).limit(REMEMBERED_JOBS)))


def seconds_of(work: Work, found: Sequence[dict[str, Any]]) -> float:
    """A loop at the speed of the jobs whose steps were most alike, and the median of what comes before and after it."""

    def unlikeness(each: dict[str, Any]) -> float:
        theirs = each["tokens"] / each["steps"]
        return abs(math.log(max(theirs, 1e-9) / max(work.tokens / max(work.steps, 1), 1e-9)))

    alike = sorted(found, key=unlikeness)[:ALIKE]
    rate = statistics.median(each["tokens"] / each["loop_seconds"] for each in alike)
    around = statistics.median(each["seconds"] - each["loop_seconds"] for each in found)
    return float(around + work.tokens / rate)
