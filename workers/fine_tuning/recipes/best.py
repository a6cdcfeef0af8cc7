"""Which state of a run was best on the held-out rows, and whether it has stopped getting better."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.fine_tuning.recipes.checkpoint import sync
from workers.fine_tuning.recipes.devices import leads

WEIGHTS = "best.safetensors"


class BestSoFar:
    """Judged at the end of each epoch. `patience` 0: training never stops early; else so many epochs without a gain
    exhaust it.
    """

    def __init__(self, work: Path, patience: int) -> None:
        self.work, self.patience = work, patience
        self.step, self.loss, self.waited = 0, float("inf"), 0

    @property
    def exhausted(self) -> bool:
        return bool(self.patience) and self.waited >= self.patience

    def judge(self, step: int, loss: float, weights: Tensor) -> None:
        """Keep the weights if they are the best yet."""
        if loss < self.loss:
            self.step, self.loss, self.waited = step, loss, 0
            if leads():
                temporary = self.work / f"{WEIGHTS}.new"
                save_file({"weights": weights}, temporary)
                sync(temporary)
                temporary.rename(self.work / WEIGHTS)
        else:
            self.waited += 1

    def weights(self) -> Tensor:
        return load_file(self.work / WEIGHTS)["weights"]

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "loss": self.loss if self.step else None, "waited": self.waited}

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.waited = state["step"], state["waited"]
        self.loss = float("inf") if state["loss"] is None else state["loss"]
