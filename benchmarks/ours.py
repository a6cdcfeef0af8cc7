"""The built-in engine in process, as a worker runs it."""

import importlib.metadata
import secrets
import threading
import time
from collections.abc import Sequence

from app.inference.wire_events import SamplingParams
from benchmarks.protocol import Setup
from models_registry.prompt import Detokenizer, Renderer
from workers.generation.engine.engine import EngineOptions, TorchEngine
from workers.generation.engine.request import EngineRequest, StepEvent


class OurEngine:
    """Each call is another tenant's unless told otherwise, so that no prompt is found in the prefix cache."""

    label = "gptstore"

    def __init__(self, setup: Setup, options: EngineOptions | None = None) -> None:
        """The setup's `option`: `plain` makes no guesses."""
        if setup.option == "plain":
            self.label, options = "gptstore, no guesses", EngineOptions(lookup=False)
        self.version = importlib.metadata.version("gptstore")
        renderer = Renderer.load(setup.base)
        self.engine = TorchEngine(
            setup.base,
            detokenizer=lambda: Detokenizer(renderer),
            eos_ids=renderer.eos_ids,
            options=options or EngineOptions(),
        )
        self.adapters = [folder.name for folder in setup.adapters]
        for folder in setup.adapters:
            self.engine.load_adapter(folder.name, folder)

    def generate(self, prompts: Sequence[list[int]], new: int) -> int:
        params = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True)
        return self.run(prompts, params, secrets.token_hex(8))

    def run(self, prompts: Sequence[list[int]], params: SamplingParams, tenant: str) -> int:
        made = 0

        def count(event: StepEvent) -> None:
            nonlocal made
            made += len(event.ids)

        handles = []
        for number, prompt in enumerate(prompts):
            adapter = self.adapters[number % len(self.adapters)] if self.adapters else None
            handles.append(self.engine.submit(EngineRequest(tuple(prompt), params, adapter, tenant), count))
        for handle in handles:
            handle.wait()
            if handle.error is not None:
                raise handle.error
        return made

    def first_token(self, prompt: list[int], adapter: str | None = None, tenant: str | None = None) -> float:
        """Milliseconds from submission to the first token."""
        heard = threading.Event()
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        started = time.perf_counter()
        request = EngineRequest(tuple(prompt), params, adapter, tenant or secrets.token_hex(8))
        handle = self.engine.submit(request, lambda _: heard.set())
        heard.wait()
        taken = (time.perf_counter() - started) * 1e3
        handle.wait()
        return taken

    def close(self) -> None:
        self.engine.close()
