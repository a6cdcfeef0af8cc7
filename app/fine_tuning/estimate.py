"""How long a job will take and what memory it needs: as the last jobs of its kind did, else as arithmetic says."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.fine_tuning.methods import Method, method_of
from app.fine_tuning.rules import estimated_seconds, peak_memory_bytes
from app.fine_tuning.size import sizes
from app.fine_tuning.tables import FineTuningJob
from app.variants.tables import BaseModel

REMEMBERED_JOBS = 20
ALIKE = 5
# The speed of a model says nothing about one so many times larger or smaller.
ALIKE_SIZE = 4
# What a step costs beyond its tokens, as so many of them: steps of 94 tokens took 0.4 s where those of 377 took 0.7.
STEP_TOKENS = 200


@dataclass(frozen=True)
class Work:
    """What training comes to: `tokens` learned in `steps` steps; `looked`: those only seen, in evaluations and for a
    reference; `longest`: tokens of the longest row, which is never cut, or 0.
    """

    tokens: int
    steps: int
    looked: int = 0
    longest: int = 0


@dataclass(frozen=True)
class Expectation:
    """`seconds` from the claim to the model, without the wait in the queue; `jobs`: how many measured ones stand
    behind it, 0 for the start value.
    """

    seconds: float
    memory_bytes: int
    jobs: int


def expect(tx: Session, base: BaseModel, method: Method, work: Work) -> Expectation:
    size, arithmetic = needs(base, method, work.longest)
    found = [each for each in measured(tx, base, method) if 1 / ALIKE_SIZE <= each["size"] / size <= ALIKE_SIZE]
    if not found:
        return Expectation(estimated_seconds(work.tokens, work.looked, size, method.makes_base), arithmetic, 0)
    peaks = [(each["peak_memory_bytes"], each["arithmetic"]) for each in found if each.get("peak_memory_bytes")]
    # A larger model needs more than the measured ones by what arithmetic says; a smaller one at most their least.
    memory = max(min(peaks)[0], *(peak + arithmetic - theirs for peak, theirs in peaks)) if peaks else arithmetic
    return Expectation(round(seconds_of(work, size, found), 1), int(memory), len(found))


def needs(base: BaseModel, method: Method, longest: int = 0) -> tuple[int, int]:
    """Parameters of the model that is trained (at least 1), and the bytes that its training should take."""
    size = sizes(method, base.parameters or 0, base.shape)[-1]
    memory = peak_memory_bytes(size.parameters, size.layers, size.width, method.makes_base, longest)
    return max(1, size.parameters), memory


def measured(tx: Session, base: BaseModel, method: Method) -> list[dict[str, Any]]:
    """The timings of the newest jobs that ran in one piece: tokens, steps, loop_seconds, seconds, peak_memory_bytes;
    with the `size` (parameters) and the `arithmetic` (bytes) of their models.
    """
    timing = FineTuningJob.result["timing"]
    query = select(timing, FineTuningJob.method).where(
        FineTuningJob.base_id == base.id,
        FineTuningJob.status == "succeeded",
        FineTuningJob.method["type"].as_string() == method.type,
        FineTuningJob.method["settings"]["adapter"].as_string() == method.settings.adapter,
        timing["loop_seconds"].as_float() > 0,
    )
    rows = tx.execute(query.order_by(FineTuningJob.finished_at.desc()).limit(REMEMBERED_JOBS))
    sized = [(timing, needs(base, method_of(theirs))) for timing, theirs in rows]
    return [{**timing, "size": size, "arithmetic": arithmetic} for timing, (size, arithmetic) in sized]


def seconds_of(work: Work, size: int, found: Sequence[dict[str, Any]]) -> float:
    """A loop at the speed per parameter of the jobs whose steps were most alike, where a step counts as STEP_TOKENS
    more; looking at the speed of those that looked, and the median of what else comes before and after.
    """

    def unlikeness(each: dict[str, Any]) -> float:
        theirs = each["tokens"] / each["steps"]
        return abs(math.log(max(theirs, 1e-9) / max(work.tokens / max(work.steps, 1), 1e-9)))

    alike = sorted(found, key=unlikeness)[:ALIKE]
    rate = statistics.median(
        each["size"] * (each["tokens"] + STEP_TOKENS * each["steps"]) / each["loop_seconds"] for each in alike
    )
    around = statistics.median(each["seconds"] - each["loop_seconds"] - each.get("looked_seconds", 0) for each in found)
    seen = [each for each in found if each.get("looked_seconds")]
    looks = [each["size"] * each["looked_tokens"] / each["looked_seconds"] for each in seen]
    # Without a measured look: the way back takes at least as long as the way forth.
    look_rate = statistics.median(looks) if looks else 2 * rate
    learning = work.tokens + STEP_TOKENS * work.steps
    return float(around + size * learning / rate + size * work.looked / look_rate)
