"""What learns: a flat fp32 vector that the optimizer moves, be it an adapter's factors or a whole model's weights."""

import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from workers.fine_tuning.recipes.devices import add_up, count
from workers.model_import.convert import save as save_model

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class Trainable(Protocol):
    """`weights` and `gradients`: fp32, of one length. `publish` shows changed weights to the model.

    With several devices, all call these together.
    """

    weights: Tensor
    gradients: Tensor

    def publish(self) -> None: ...

    def add_up(self) -> Tensor:
        """Add up the gradients of all devices; their norm."""
        ...

    def whole(self, vector: Tensor) -> Tensor:
        """All of a vector like `weights`, on the first device, from the parts that devices hold."""
        ...

    def part(self, whole: Tensor) -> Tensor:
        """This device's part of it."""
        ...

    def save(self, folder: Path) -> Any:
        """The first device writes what is kept of the training; facts of a base (BaseFacts) of a whole model."""
        ...


class Replicated:
    """What every device holds whole: gradients of its own rows, the same weights."""

    weights: Tensor
    gradients: Tensor

    def add_up(self) -> Tensor:
        return torch.linalg.vector_norm(add_up(self.gradients))

    def whole(self, vector: Tensor) -> Tensor:
        return vector

    def part(self, whole: Tensor) -> Tensor:
        return whole


class WholeModel(Replicated):
    """Every parameter of a model as one vector, matrices first: `matrices` of its elements are theirs.

    An fp32 model reads the vector itself; one in 16 bits gets a rounded copy after each step, and its gradients are
    added up in fp32.
    """

    def __init__(self, model: nn.Module, tokenizer: Path, license: str = "unknown") -> None:
        self.model, self.tokenizer, self.license = model, tokenizer, license
        self.parameters = sorted(model.parameters(), key=lambda each: each.dim() < 2)
        self.matrices = sum(each.numel() for each in self.parameters if each.dim() > 1)
        total, device = sum(each.numel() for each in self.parameters), self.parameters[0].device
        self.weights, self.gradients = torch.empty(total, device=device), torch.zeros(total, device=device)
        self.views: list[Tensor] = []
        begin = 0
        for parameter in self.parameters:
            end = begin + parameter.numel()
            self._tie(parameter, slice(begin, end))
            begin = end

    def _tie(self, parameter: nn.Parameter, part: slice) -> None:
        view, slope = self.weights[part].view(parameter.shape), self.gradients[part].view(parameter.shape)
        view.copy_(parameter.detach())
        parameter.requires_grad_(True)
        self.views.append(view)
        if parameter.dtype == torch.float32:
            parameter.data = view
            parameter.grad = slope
            return

        def collect(learned: Tensor) -> None:
            if learned.grad is not None:
                slope.add_(learned.grad)
                learned.grad = None

        parameter.register_post_accumulate_grad_hook(collect)

    @torch.no_grad()
    def publish(self) -> None:
        for parameter, view in zip(self.parameters, self.views, strict=True):
            if parameter.dtype != torch.float32:
                parameter.copy_(view)

    def save(self, folder: Path) -> Any:
        return save_whole(self.model, self.tokenizer, folder, self.license)


def whole_model(model: Any, tokenizer: Path) -> Any:
    """Every weight learns: of several devices each keeps a part (FSDP)."""
    if count() == 1:
        return WholeModel(model, tokenizer)
    from workers.fine_tuning.recipes.sharded import ShardedModel

    return ShardedModel(model, tokenizer)


def save_whole(model: nn.Module, tokenizer: Path, folder: Path, license: str) -> Any:
    """A Hugging Face folder in the form of an imported base."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)
    return save_model(model, folder, license)
