"""The loss curve of a job as places in an SVG. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 32, 50
MAX_POINTS = 240


@dataclass(frozen=True)
class Tick:
    """A place in pixels and what is written there."""

    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """`train` and `valid` are SVG point lists (`x,y x,y`); the last points are marked."""

    train: str
    valid: str
    ends: Sequence[tuple[str, float, float]]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    summary: str


def draw(metrics: Sequence[Mapping[str, Any]]) -> Curve | None:
    """None before the first step. The x axis ends at the job's last step, so the curve grows into its frame."""
    train = thinned([(each["step"], float(each["train_loss"])) for each in metrics])
    valid = [(each["step"], float(each["valid_loss"])) for each in metrics if each.get("valid_loss") is not None]
    if not train:
        return None
    last = max(int(metrics[-1].get("total_steps") or 1), int(train[-1][0]), 2)
    losses = [loss for _, loss in train + valid]
    steps = nice_ticks(min(losses), max(losses), 5)
    low, high = steps[0], steps[-1]

    def place(step: float, loss: float) -> tuple[float, float]:
        x = LEFT + (step - 1) / (last - 1) * (WIDTH - LEFT - RIGHT)
        y = TOP + (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    series = [(name, points) for name, points in (("train", train), ("valid", valid)) if points]
    return Curve(
        train=line(place(*point) for point in train),
        valid=line(place(*point) for point in valid),
        ends=[(name, *place(*points[-1])) for name, points in series],
        x_ticks=[Tick(place(step, low)[0], f"{step:,}") for step in whole_ticks(last)],
        y_ticks=[Tick(place(1, loss)[1], f"{loss:g}") for loss in steps],
        summary=f"Training loss from {train[0][1]:.3f} to {train[-1][1]:.3f} over {train[-1][0]:g} of {last:,} steps.",
    )


def line(points: Any) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS, each the mean of its stretch; the first and the last stay."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = len(points) / (MAX_POINTS - 2)
    stretches = [points[int(at * size) : int((at + 1) * size)] for at in range(MAX_POINTS - 2)]
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in stretches]
    return [points[0], *means, points[-1]]


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    span = max(high - low, abs(high) * 0.1, 1e-6)
    power = 10 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / about)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def whole_ticks(last: int) -> list[int]:
    """The first and the last step, and round ones between that leave room for their labels."""
    step = max(int(nice_ticks(0, last, 6)[1]), 1)
    return [1, *(number for number in range(step, last, step) if number > 1 and last - number > step / 2), last]
