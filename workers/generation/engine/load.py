"""From settings to a running engine. The engine's library (torch, vLLM) is imported by the choice."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import structlog

from app.settings import GenerationSettings
from models_registry.prompt import Detokenizer, Renderer
from workers.generation.engine.grammar import Grammars
from workers.generation.engine.protocol import Engine

log = structlog.get_logger(__name__)

AfterStep = Callable[[], None]


def load_engine(settings: GenerationSettings, folder: Path, renderer: Renderer, after_step: AfterStep) -> Engine:
    """The engine that `GPTSTORE_GENERATION__ENGINE` names, with the base of `folder` in memory.

    Raises ValueError for settings that this engine or this machine cannot follow.
    """
    load = {"torch": load_torch, "vllm": load_vllm}[settings.engine]
    return load(settings, folder, renderer, after_step)


def load_torch(
    settings: GenerationSettings, folder: Path, renderer: Renderer, after_step: Callable[[], None]
) -> Engine:
    from transformers.utils.logging import disable_progress_bar

    from workers.generation.engine.engine import EngineOptions, TorchEngine

    disable_progress_bar()
    return TorchEngine(
        folder,
        detokenizer=lambda: Detokenizer(renderer),
        eos_ids=renderer.eos_ids,
        options=EngineOptions(
            device=settings.device,
            dtype=settings.dtype,
            quantization=settings.quantization,
            max_batch=settings.max_batch,
            max_batch_tokens=settings.max_batch_tokens,
            kv_cache_tokens=settings.kv_cache_tokens,
            adapter_memory_bytes=settings.adapter_memory_bytes,
            threads=settings.threads,
            graphs=settings.graphs,
            lookup=settings.prompt_lookup,
        ),
        after_step=after_step,
        grammars=load_grammars(renderer),
    )


def load_grammars(renderer: Renderer) -> Grammars | None:
    """Some tenths of a second, so at the start. None: the library does not know this kind of tokenizer."""
    try:
        return Grammars(renderer.tokenizer.to_str(), renderer.eos_ids)
    except ValueError as error:
        log.warning("no_structured_output", reason=str(error))
        return None


def load_vllm(settings: GenerationSettings, folder: Path, renderer: Renderer, after_step: AfterStep) -> Engine:
    """A worker whose vLLM died takes its leave, so that its supervisor starts another."""
    if settings.quantization != "none":
        raise ValueError("GPTSTORE_GENERATION__QUANTIZATION is for the built-in engine: give vLLM a quantised base")
    from workers.generation.engine.vllm_engine import VllmEngine

    return VllmEngine(
        folder,
        detokenizer=lambda: Detokenizer(renderer),
        eos_ids=renderer.eos_ids,
        settings=settings,
        after_step=after_step,
        on_death=lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
