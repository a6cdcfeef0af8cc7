"""The base's products: weights packed once at load, then our kernel, oneDNN or cuBLAS, whichever is fastest there."""

import torch
from torch import Tensor
from torch.nn.functional import linear


class Product:
    """x `[1, rows, in]` · weightᵀ + bias → `[1, rows, out]`; holds the weights once, in the form it uses.

    On a processor our own kernel serves; where that multiplies matrices of bf16 in hardware (AMX), oneDNN is faster.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: bool) -> None:
        """`kernels`: the compiled ones may be used."""
        self.out_features, self.in_features = weight.shape
        self._bias = bias
        amx = weight.dtype == torch.bfloat16 and torch.cpu.get_capabilities().get("amx_bf16")
        self._one_dnn = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and (bool(amx) or not kernels)
        self._panels = False
        if self._one_dnn:
            # oneDNN's own layout: plain weights would be re-ordered on each call.
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        elif kernels:
            from workers.generation.engine.cpu.multiply import pack, packs

            self._panels = packs(weight)
            weight = pack(weight) if self._panels else weight
        self._weight = weight

    def __call__(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """`onto`: `[1, rows, out]`, added to the result."""
        if self._panels:
            from workers.generation.engine.cpu.multiply import multiply

            return multiply(x.contiguous(), self._weight, self.out_features, self._bias, onto)
        result: Tensor
        if self._one_dnn:
            result = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        else:
            result = linear(x, self._weight, self._bias)
        return result if onto is None else result.add_(onto)
