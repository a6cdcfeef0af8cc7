"""Kernels for processors, compiled by numba at first use (no compiler on the machine; later starts read its cache).

`AVAILABLE` is False where numba is not installed; everything then runs as torch operations.
"""

import importlib
import importlib.util

import torch

AVAILABLE = importlib.util.find_spec("numba") is not None
KINDS = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def serves(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """The attention kernel takes whole 32-bit words of a head."""
    return AVAILABLE and device.type == "cpu" and dtype in KINDS and head_dim % 2 == 0


def prepare(dtype: torch.dtype) -> None:
    """Compile what serves models of this type."""
    names = ("attend", "multiply", "low_rank", "rotate", "pointwise", "choose")
    for module in (importlib.import_module(f"{__name__}.{name}") for name in names):
        for kernels in vars(module).values():
            if isinstance(kernels, dict) and KINDS[dtype] in kernels:
                kernels[KINDS[dtype]].prepare()
