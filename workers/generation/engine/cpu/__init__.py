"""Kernels for processors, compiled by numba at first use (no compiler on the machine; later starts read its cache).

`AVAILABLE` is False where numba is not installed; everything then runs as torch operations.
"""

import ctypes
import importlib.util

import torch
from torch import Tensor

AVAILABLE = importlib.util.find_spec("numba") is not None
KINDS = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def serves(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """The attention kernel takes whole 32-bit words of a head."""
    return AVAILABLE and device.type == "cpu" and dtype in KINDS and head_dim % 2 == 0


def words_at(address: int, count: int) -> Tensor:
    """Foreign memory as 32-bit words; only valid as long as its owner lives."""
    return torch.frombuffer((ctypes.c_int32 * count).from_address(address), dtype=torch.int32)
