"""What a step makes smaller, and the figures that tell whether it did: log-likelihood, unlikelihood, preference."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from workers.fine_tuning.recipes import packing
from workers.fine_tuning.recipes.model import target_logprobs
from workers.fine_tuning.recipes.rows import Row

Sums = Counter[str]
# A probability this near to 1 would make the unlikelihood's slope endless.
SUREST = 1 - 1e-5


class Objective(Protocol):
    """A loss is a sum over rows, divided by their sizes."""

    def size(self, row: Row) -> int: ...

    def measure(self, model: Any, rows: Sequence[Row], device: torch.device) -> tuple[Tensor, dict[str, float]]:
        """The sum of losses, and sums that `figures` makes means of."""
        ...

    def figures(self, sums: Sums) -> dict[str, float]:
        """`loss` as it is trained, and means to show."""
        ...


class Likelihood:
    """Targets become likelier, those of unwanted rows unlikelier: -log(1 - p), `unwanted_weight` times."""

    def __init__(self, unwanted_weight: float = 1.0) -> None:
        self.unwanted_weight = unwanted_weight

    def size(self, row: Row) -> int:
        return sum(row.mask[1:])

    def measure(self, model: Any, rows: Sequence[Row], device: torch.device) -> tuple[Tensor, dict[str, float]]:
        pack = packing.pack(rows, device)
        logprobs, correct = target_logprobs(model, pack)
        count = len(pack.labels)
        if not any(row.unwanted for row in rows):
            loss = -logprobs.sum()
            value = loss.item()
            return loss, {"loss": value, "wanted_loss": value, "correct": float(correct), "wanted": count, "all": count}
        unwanted = torch.tensor([row.unwanted for row in rows], device=device)[pack.answers // 2]
        likely = logprobs.detach()
        pushed = -torch.log1p(-SUREST * logprobs.exp()) * self.unwanted_weight
        loss = torch.where(unwanted, pushed, -logprobs).sum()
        wanted = int((~unwanted).sum())
        return loss, {
            "loss": loss.item(),
            "wanted_loss": -likely[~unwanted].sum().item(),
            "wanted": wanted,
            "unwanted_logprob": likely[unwanted].sum().item(),
            "unwanted": count - wanted,
            "unwanted_rows": sum(row.unwanted for row in rows),
            "all": count,
        }

    def figures(self, sums: Sums) -> dict[str, float]:
        """With unwanted rows accuracy says little and is left out."""
        found = {"loss": sums["loss"] / sums["all"]}
        if "correct" in sums and sums["wanted"] == sums["all"]:
            found["mean_token_accuracy"] = sums["correct"] / sums["all"]
        if sums["unwanted"]:
            found["unwanted_mean_logprob"] = sums["unwanted_logprob"] / sums["unwanted"]
            found["unwanted_answer_logprob"] = sums["unwanted_logprob"] / sums["unwanted_rows"]
        return found


class Preference:
    """Direct preference optimisation: the preferred answer gains on the other, against the model as it began."""

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def size(self, row: Row) -> int:
        return 1

    def measure(self, model: Any, rows: Sequence[Row], device: torch.device) -> tuple[Tensor, dict[str, float]]:
        gains = self.beta * (answer_logprobs(model, rows, device) - references(rows, device))
        margins = gains[:, 0] - gains[:, 1]
        loss = -logsigmoid(margins).sum()
        seen = margins.detach()
        right = float((seen > 0).sum()) + 0.5 * float((seen == 0).sum())
        return loss, {"loss": loss.item(), "margin": seen.sum().item(), "right": right, "all": len(rows)}

    def figures(self, sums: Sums) -> dict[str, float]:
        """`reward_margin` in units of beta's rewards; `reward_accuracy`: how often the preferred answer gained more."""
        count = sums["all"]
        return {
            "loss": sums["loss"] / count,
            "reward_margin": sums["margin"] / count,
            "reward_accuracy": sums["right"] / count,
        }


def answer_logprobs(model: Any, rows: Sequence[Row], device: torch.device) -> Tensor:
    """[rows, 2]: summed log-probabilities of the preferred and the other answer."""
    pack = packing.pack(rows, device)
    logprobs, _ = target_logprobs(model, pack)
    return torch.zeros(2 * len(rows), device=device).index_add(0, pack.answers, logprobs).view(-1, 2)


def references(rows: Sequence[Row], device: torch.device) -> Tensor:
    return torch.tensor([row.reference for row in rows], device=device)


def perplexity(loss: float) -> float:
    return round(math.exp(min(loss, 50.0)), 3)
