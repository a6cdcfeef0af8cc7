"""From settings to a running engine. Importing this module imports torch."""

from collections.abc import Callable
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from app.settings import GenerationSettings
from models_registry.prompt import Detokenizer, Renderer
from workers.generation.engine.engine import EngineOptions, TorchEngine
from workers.generation.engine.protocol import Engine


def load_engine(
    settings: GenerationSettings, folder: Path, renderer: Renderer, after_step: Callable[[], None]
) -> Engine:
    """The engine that `GPTSTORE_GENERATION__ENGINE` names, with the base of `folder` in memory."""
    if settings.engine != "torch":
        raise ValueError(f"unknown engine {settings.engine!r}; this build has: torch")
    disable_progress_bar()
    return TorchEngine(
        folder,
        detokenizer=lambda: Detokenizer(renderer),
        eos_ids=renderer.eos_ids,
        options=EngineOptions(
            device=settings.device,
            dtype=settings.dtype,
            max_batch=settings.max_batch,
            max_batch_tokens=settings.max_batch_tokens,
            kv_cache_tokens=settings.kv_cache_tokens,
            adapter_memory_bytes=settings.adapter_memory_bytes,
            threads=settings.threads,
        ),
        after_step=after_step,
    )
