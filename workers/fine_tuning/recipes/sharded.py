"""Every weight of a model, each device holding its part: FSDP2, torch's `fully_shard` (arXiv 2304.11277)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from workers.fine_tuning.recipes.changes import layers_of
from workers.fine_tuning.recipes.devices import add_up, count, leads, number
from workers.fine_tuning.recipes.trainable import save_whole


class ShardedModel:
    """As WholeModel, but `weights` and `gradients` are this device's rows of each matrix, in fp32.

    A layer is put together in the model's own numbers when it is needed; its gradients are added up in fp32.
    """

    def __init__(self, model: Any, tokenizer: Path, license: str = "unknown") -> None:
        self.model, self.tokenizer, self.license, self.dtype = model, tokenizer, license, model.dtype
        model.requires_grad_(True)
        policy = MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32)
        for module in (*layers_of(model), model):
            fully_shard(module, mp_policy=policy)
            add_only(module)
        model.float()
        # The head is used outside of the model's forward: what is no layer stays put together until the way back.
        model.forward, model.is_sharded = model.base_model.forward, True
        self.parameters: list[Any] = sorted(model.parameters(), key=lambda each: each.dim() < 2)
        self.matrices = sum(each.to_local().numel() for each in self.parameters if each.dim() > 1)
        self.weights = torch.cat([each.to_local().detach().flatten() for each in self.parameters])
        self.gradients = torch.zeros_like(self.weights)
        for parameter, slope in self._views(self.gradients):
            parameter.grad = distributed_like(parameter, slope)

    def _views(self, vector: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """Each parameter with its part of a vector of this device."""
        begin = 0
        for parameter in self.parameters:
            local = parameter.to_local()
            yield parameter, vector[begin : begin + local.numel()].view(local.shape)
            begin += local.numel()

    @torch.no_grad()
    def publish(self) -> None:
        for parameter, view in self._views(self.weights):
            parameter.to_local().copy_(view)
        self.model.reshard()

    def add_up(self) -> Tensor:
        """FSDP has added the gradients up on the way back."""
        return add_up(torch.linalg.vector_norm(self.gradients).square()).sqrt()

    def whole(self, vector: Tensor) -> Tensor:
        pieces = []
        for parameter, view in self._views(vector):
            piece = distributed_like(parameter, view).full_tensor()
            pieces += [piece.flatten().cpu()] if leads() else []
        return torch.cat(pieces) if pieces else torch.empty(0)

    def part(self, whole: Tensor) -> Tensor:
        own, sizes = [], [each.numel() for each in self.parameters]
        for parameter, piece in zip(self.parameters, whole.split(sizes), strict=True):
            rows = piece.view(parameter.shape).chunk(count())
            own += [rows[number()].flatten()] if number() < len(rows) else []
        return torch.cat(own)

    def save(self, folder: Path) -> Any:
        """Put together by all, written by the first."""
        state = {}
        for name, tensor in self.model.state_dict().items():
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if leads():
                state[name] = full.to("cpu", self.dtype)
        if not leads():
            return None
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.model.config, dtype=self.dtype)
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        model.generation_config = self.model.generation_config
        return save_whole(model, self.tokenizer, folder, self.license)


def add_only(module: nn.Module) -> None:
    """A step's loss is divided by all its targets already: gradients are added, not averaged."""
    if isinstance(module, FSDPModule):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def distributed_like(parameter: Any, local: Tensor) -> DTensor:
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(local, mesh, placements, shape=parameter.shape, stride=parameter.stride())
