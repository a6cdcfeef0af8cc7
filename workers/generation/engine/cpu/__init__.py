"""Kernels for processors, compiled by numba at first use (no compiler on the machine; later starts read its cache).

`AVAILABLE` is False where numba is not installed; everything then runs as torch operations.
"""

import importlib.util
from typing import Any

import torch

from workers.generation.engine.linear import Form

AVAILABLE = importlib.util.find_spec("numba") is not None
KINDS = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def serves(device: torch.device, dtype: torch.dtype, config: Any) -> bool:
    """The kernels take whole 32-bit words of a head and of a row. `config`: the model's."""
    widths = [config.hidden_size, getattr(config, "head_dim", None), getattr(config, "intermediate_size", None)]
    heads = config.hidden_size // config.num_attention_heads
    even = all(width % 2 == 0 for width in (*widths, heads) if width is not None)
    return AVAILABLE and device.type == "cpu" and dtype in KINDS and even


def multiplies(dtype: torch.dtype) -> bool:
    """Whether our product serves: not where the processor multiplies whole matrices (AMX) and only oneDNN may."""
    from workers.generation.engine.cpu import amx

    return dtype != torch.bfloat16 or amx.AVAILABLE or not torch.cpu.get_capabilities().get("amx_bf16", False)


def prepare(dtype: torch.dtype, form: Form) -> None:
    """Compile what serves models of this type and their products' form."""
    from workers.generation.engine.cpu import attend, choose, int8, low_rank, multiply, pointwise, rotate, tape

    families = [attend.ATTEND, rotate.ROTATE, pointwise.NORM, pointwise.GATE]
    products = {Form.PANELS: [multiply.KERNELS, multiply.WIDE], Form.INT8: [int8.QUANTISE, int8.KERNELS, int8.WIDE]}
    if form in products:
        families += [*products[form], low_rank.KERNELS]
    for kernel in [choose.CHOOSE, tape.PLAY, pointwise.LOOK_UP, *(kernels[KINDS[dtype]] for kernels in families)]:
        kernel.prepare()
