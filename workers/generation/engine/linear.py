"""The base's products: weights packed once at load, then our kernel, oneDNN or cuBLAS."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

if TYPE_CHECKING:
    from workers.generation.engine.cpu.low_rank import Changes


class Product:
    """x `[1, rows, in]` · weightᵀ + bias → `[1, rows, out]`; holds the weights once, in the form it uses."""

    def __init__(self, weight: Tensor, bias: Tensor | None, panels: bool) -> None:
        """`panels`: our own kernel multiplies."""
        self.out_features, self.in_features = weight.shape
        self._bias, self._panels = bias, panels
        self._one_dnn = not panels and weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        if panels:
            from workers.generation.engine.cpu.multiply import pack

            weight = pack(weight)
        elif self._one_dnn:
            # oneDNN's own layout: plain weights would be re-ordered on each call.
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._weight = weight

    def __call__(self, x: Tensor, onto: Tensor | None = None, changes: "Changes | None" = None) -> Tensor:
        """`onto`: `[1, rows, out]`, added to the result. `changes` by adapters: with panels only."""
        if self._panels:
            from workers.generation.engine.cpu.multiply import multiply

            return multiply(x.contiguous(), self._weight, self.out_features, self._bias, onto, changes)
        result = self._product(x)
        return result if onto is None else result.add_(onto)

    def wide(self, x: Tensor) -> Tensor:
        """In fp32: bf16 logits make ties of what is none."""
        if self._panels:
            from workers.generation.engine.cpu.multiply import multiply

            return multiply(x.contiguous(), self._weight, self.out_features, self._bias, wide=True)
        return self._product(x).float()

    def _product(self, x: Tensor) -> Tensor:
        if self._one_dnn:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
            return result
        return linear(x, self._weight, self._bias)
