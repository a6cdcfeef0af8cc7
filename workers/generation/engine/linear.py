"""The base's products: weights packed once at load, then our kernels, oneDNN or cuBLAS."""

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from workers.generation.engine.kernel_calls import NOW, Caller

if TYPE_CHECKING:
    from workers.generation.engine.cpu.low_rank import Changes


class Form(Enum):
    """Whose product: a library's, or our own kernel's with weights as the model has them or in 8 bits."""

    LIBRARY = "library"
    PANELS = "panels"
    INT8 = "int8"


class Product:
    """x `[1, rows, in]` · weightᵀ + bias → `[1, rows, out]`; holds the weights once, in the form it uses."""

    def __init__(self, weight: Tensor, bias: Tensor | None, form: Form, place: Callable[[Tensor], Tensor]) -> None:
        """`place` gives our own kernels' weights their memory."""
        self.out_features, self.in_features = weight.shape
        self._bias, self._own = bias, form is not Form.LIBRARY
        self._one_dnn = not self._own and weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        self._weight: Any = weight
        self._multiply: Callable[..., Tensor]
        if form is Form.PANELS:
            from workers.generation.engine.cpu import multiply

            self._weight, self._multiply = multiply.pack(weight, place), multiply.multiply
        elif form is Form.INT8:
            from workers.generation.engine.cpu import int8

            self._weight, self._multiply = int8.pack(weight, place), int8.multiply
        elif self._one_dnn:
            # oneDNN's own layout: plain weights would be re-ordered on each call.
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def __call__(
        self, x: Tensor, onto: Tensor | None = None, changes: "Changes | None" = None, on: Caller = NOW
    ) -> Tensor:
        """`onto`: `[1, rows, out]`, added to the result. `changes` by adapters, and `on`: our own kernels only."""
        if self._own:
            return self._multiply(x.contiguous(), self._weight, self.out_features, self._bias, onto, changes, on=on)
        result = self._product(x)
        return result if onto is None else result.add_(onto)

    def wide(self, x: Tensor, on: Caller = NOW) -> Tensor:
        """In fp32: bf16 logits make ties of what is none."""
        if self._own:
            return self._multiply(x.contiguous(), self._weight, self.out_features, self._bias, wide=True, on=on)
        return self._product(x).float()

    def _product(self, x: Tensor) -> Tensor:
        if self._one_dnn:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
            return result
        return linear(x, self._weight, self._bias)
