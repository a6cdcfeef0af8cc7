"""The base's products: weights packed once at load, one kernel for a single row, oneDNN or cuBLAS for more."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from workers.generation.engine import cpu

PANEL = 64
PAIRS = 4


class Product:
    """x `[1, rows, in]` · weightᵀ + bias → `[1, rows, out]`; holds the weights once, in the form it uses."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        self._bias = bias
        packs = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        self._weight = pack(weight) if packs else weight
        self._packed = packs
        self._panel_stride = panel_stride(self._weight, weight) if packs and cpu.AVAILABLE else 0
        self._address = torch.ops.mkldnn.data_ptr(self._weight) if self._panel_stride else 0

    def __call__(self, x: Tensor) -> Tensor:
        if not self._packed:
            return linear(x, self._weight, self._bias)
        if self._panel_stride and x.shape[1] == 1:
            return self._one_row(x)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return result

    def _one_row(self, x: Tensor) -> Tensor:
        from workers.generation.engine.cpu.project import ONE_ROW

        result = x.new_empty(1, 1, self.out_features)
        ONE_ROW(x.data_ptr(), self._address, result.data_ptr(), self.in_features, self.out_features, self._panel_stride)
        return result if self._bias is None else result.add_(self._bias)


def pack(weight: Tensor) -> Tensor:
    """oneDNN's own layout: plain bf16 weights would be re-ordered on each call."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return packed


def panel_stride(packed: Tensor, weight: Tensor) -> int:
    """32-bit words per panel of 64 outputs, or 0 where this machine's oneDNN packs in another way than we read.

    Checked on the weights themselves: the layout is oneDNN's private choice.
    """
    out_features, in_features = weight.shape
    panels = -(-out_features // PANEL)
    words, rest = divmod(int(torch.ops.mkldnn._nbytes(packed)), 4 * panels)
    if rest or in_features % (2 * PAIRS) or words < in_features // 2 * PANEL:
        return 0
    memory = cpu.words_at(torch.ops.mkldnn.data_ptr(packed), panels * words)
    pairs = weight.view(torch.int32) if in_features % 2 == 0 else weight
    for panel in {0, panels // 2, panels - 1}:
        rows = pairs[panel * PANEL : (panel + 1) * PANEL]
        block = memory[panel * words : panel * words + in_features // 2 * PANEL].view(-1, PANEL)
        if not torch.equal(block[:, : rows.shape[0]], rows.t()):
            return 0
    return words
