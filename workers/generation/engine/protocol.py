"""What the rest of the store may ask of an engine. The torch engine fulfils it; others (vLLM) can."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workers.generation.engine.request import EngineRequest, Handle, StepEvent

OnEvent = Callable[[StepEvent], None]


class AdapterNotLoaded(LookupError):
    """The request names an adapter that is not resident: load it, then submit again."""


class EngineClosed(RuntimeError):
    """The engine stopped before this request ended."""


class RequestTooLong(ValueError):
    """Prompt and answer together exceed the model's context or the whole KV cache."""


@dataclass(frozen=True)
class EngineStats:
    """A snapshot; counts of sequences, KV blocks, adapters, and totals since the start.

    `guessed`: tokens that were tried ahead of their turn; `guessed_right`: those that were sampled then.
    """

    running: int
    waiting: int
    blocks_used: int
    blocks_total: int
    adapters: int
    adapter_bytes: int
    steps: int
    prompt_tokens: int
    produced_tokens: int
    busy_seconds: float
    preemptions: int
    guessed: int = 0
    guessed_right: int = 0


class Engine(Protocol):
    """Thread-safe. `on_event` is called on the engine's thread and must return at once."""

    def submit(self, request: EngineRequest, on_event: OnEvent) -> Handle:
        """Queue a request; its grammar is compiled in this thread. Raises AdapterNotLoaded, RequestTooLong,
        InvalidGrammar.
        """
        ...

    def cancel(self, handle: Handle) -> None:
        """Stop between steps; the sequences still open end with finish `cancelled`."""
        ...

    def load_adapter(self, digest: str, folder: Path) -> None:
        """Make a plain PEFT LoRA folder resident (in the caller's thread, the batch goes on)."""
        ...

    def unload_adapter(self, digest: str) -> None: ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None:
        """Stop after the present step; requests still open end with an error."""
        ...
