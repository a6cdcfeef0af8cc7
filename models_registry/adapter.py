"""Is this LoRA adapter safe to keep and able to ride on its base? Checked before it is stored.

The config is rebuilt from an allow-list: PEFT imports a module that a config names and uses a string of
`target_modules` as a regular expression, so nothing of the uploaded config is passed on as it came.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from models_registry.errors import InvalidAdapterConfig, NonFiniteWeights
from models_registry.safetensors_header import TensorEntry, read_header

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MAX_CONFIG_BYTES = 64 * 1024
MAX_RANK = 64
FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
REFUSED_FIELDS = (
    "use_dora",
    "modules_to_save",
    "auto_mapping",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "use_qalora",
    "alora_invocation_tokens",
    "arrow_config",
)


@dataclass(frozen=True)
class AdapterInfo:
    """`config` is what is stored as adapter_config.json; `parameters` counts weights, `bytes` the file."""

    rank: int
    alpha: float
    parameters: int
    bytes: int
    target_modules: tuple[str, ...]
    config: Mapping[str, Any]


def check_adapter(weights: Path, config_json: bytes, linears: Mapping[str, list[int]]) -> AdapterInfo:
    """`linears`: full name → [out, in] of every linear of the base.

    Raises UnsafeFormat, InvalidSafetensors, InvalidAdapterConfig, NonFiniteWeights.
    """
    config = read_config(config_json)
    tensors = read_header(weights)
    modules = check_shapes(tensors, config["r"], linears)
    check_finite(weights, tensors)
    config["target_modules"] = sorted({name.rpartition(".")[2] for name in modules})
    parameters = sum(prod(tensor.shape) for tensor in tensors.values())
    targets = tuple(config["target_modules"])
    return AdapterInfo(config["r"], config["lora_alpha"], parameters, weights.stat().st_size, targets, config)


def read_config(raw: bytes) -> dict[str, Any]:
    """The allow-listed part of a PEFT LoRA config."""
    try:
        given = json.loads(raw) if len(raw) <= MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise InvalidAdapterConfig("adapter_config.json is not a JSON object of at most 64 KB.")
    if given.get("peft_type") != "LORA":
        raise InvalidAdapterConfig("Only LoRA adapters are served (peft_type LORA).")
    for field in REFUSED_FIELDS:
        if given.get(field):
            raise InvalidAdapterConfig(f"{field} is not supported.")
    if given.get("bias", "none") != "none":
        raise InvalidAdapterConfig("bias must be 'none'.")
    if isinstance(given.get("target_modules"), str):
        raise InvalidAdapterConfig("target_modules must be a list of names.")
    if "://" in str(given.get("base_model_name_or_path") or ""):
        raise InvalidAdapterConfig("base_model_name_or_path may not be a URL.")
    rank, alpha = given.get("r"), given.get("lora_alpha", 8)
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise InvalidAdapterConfig(f"r must be an integer from 1 to {MAX_RANK}.")
    if type(alpha) not in (int, float) or not 0 < alpha <= 1024:
        raise InvalidAdapterConfig("lora_alpha must be a number above 0 and at most 1024.")
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": given.get("use_rslora") is True,
        "fan_in_fan_out": given.get("fan_in_fan_out") is True,
        "inference_mode": True,
        "base_model_name_or_path": "",
    }


def check_shapes(tensors: Mapping[str, TensorEntry], rank: int, linears: Mapping[str, list[int]]) -> set[str]:
    """Every tensor is one factor of a linear of the base, both factors are there; returns the linears' names."""
    factors: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        match = FACTOR.fullmatch(name)
        if match is None or match[1] not in linears:
            raise InvalidAdapterConfig(f"Tensor {name[:120]!r} belongs to no linear of the base.")
        factors.setdefault(match[1], {})[match[2]] = tensor.shape
    for linear, shapes in factors.items():
        out, inner = linears[linear]
        if shapes != {"A": (rank, inner), "B": (out, rank)}:
            raise InvalidAdapterConfig(f"The factors of {linear} do not have the shapes of rank {rank} on this base.")
    return set(factors)


def check_finite(weights: Path, tensors: Mapping[str, TensorEntry]) -> None:
    """An exponent of all ones is NaN or infinite, whatever the format."""
    formats = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
    data = np.memmap(weights, dtype=np.uint8, mode="r")
    for name, tensor in tensors.items():
        kind, exponent = formats[tensor.dtype]
        bits = np.frombuffer(data[tensor.begin : tensor.end].tobytes(), dtype=kind)
        if bool(((bits & exponent) == exponent).any()):
            raise NonFiniteWeights(f"Tensor {name[:120]!r} holds NaN or infinite values.")
