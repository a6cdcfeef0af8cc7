"""The engines that fulfil the protocol, started the same way over a tiny base."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from app.settings import GenerationSettings, VllmSettings
from tests.generation.tiny import Spelled
from workers.generation.engine.engine import EngineOptions, TorchEngine
from workers.generation.engine.protocol import Engine

END = 0
ADAPTERS = ("a0", "a1", "a2", "a3")
PLACES = 5


def start_torch(base: Path, after_step: Callable[[], None]) -> Engine:
    options = EngineOptions(dtype="fp32", kv_cache_tokens=4096, max_batch_tokens=64)
    return TorchEngine(base, detokenizer=Spelled, eos_ids=frozenset({END}), options=options, after_step=after_step)


def start_vllm(base: Path, after_step: Callable[[], None], on_death: Callable[[], None] = lambda: None) -> Engine:
    from workers.generation.engine.vllm_engine import VllmEngine

    own = VllmSettings(adapters_per_batch=PLACES, max_rank=16)
    settings = GenerationSettings(dtype="fp32", kv_cache_tokens=4096, max_batch_tokens=64, threads=1, vllm=own)
    return VllmEngine(
        base,
        detokenizer=Spelled,
        eos_ids=frozenset({END}),
        settings=settings,
        after_step=after_step,
        on_death=on_death,
    )


def start(name: str, root: Path, after_step: Callable[[], None] = lambda: None) -> Engine:
    """Over `root/base`, with its four adapters."""
    engine = {"torch": start_torch, "vllm": start_vllm}[name](root / "base", after_step)
    for adapter in ADAPTERS:
        engine.load_adapter(adapter, root / adapter)
    return engine


needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM has its own environment: make testvllm"),
]
IMPLEMENTATIONS = ["torch", pytest.param("vllm", marks=needs_vllm)]
