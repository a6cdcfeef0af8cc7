"""The engine protocol on vLLM's asynchronous engine: for GPUs, tensor parallelism and models beyond one device.

vLLM schedules and computes in processes of its own; an event loop in one thread here turns its outputs into the
protocol's events. Each choice is a vLLM request, so that one can stop while its siblings go on. The same seed gives
the same text for the same load only: vLLM's kernels round differently in other batches.
"""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import structlog
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from app.settings import GenerationSettings
from workers.generation.engine.grammar import InvalidGrammar
from workers.generation.engine.protocol import EngineClosed, EngineStats, OnEvent, RequestTooLong
from workers.generation.engine.reply_text import Detokenizer
from workers.generation.engine.request import EngineRequest, Handle, Sequence, StepEvent
from workers.generation.engine.vllm_adapters import VllmAdapters
from workers.generation.engine.vllm_process import StepCounter, engine_args, resident_adapters
from workers.generation.engine.vllm_sampling import sampling_params, token_logprob

log = structlog.get_logger(__name__)
Result = TypeVar("Result")


class VllmEngine:
    """Fulfils `protocol.Engine`. Everything with an underscore but `_run` runs on the loop's thread.

    `on_death`: vLLM's process is gone; every open and later request fails, only a new engine helps.
    """

    def __init__(
        self,
        folder: Path,
        *,
        detokenizer: Callable[[], Detokenizer],
        eos_ids: frozenset[int],
        settings: GenerationSettings,
        after_step: Callable[[], None] = lambda: None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self._new_detokenizer, self._eos_ids = detokenizer, eos_ids
        self._after_step, self._on_death = after_step, on_death
        self._open: dict[Handle, list[tuple[Sequence, asyncio.Task[None]]]] = {}
        self._ended: list[Handle] = []
        self._step_told = True
        self._closed = False
        self._ids = itertools.count()
        self._prompt_tokens = self._produced_tokens = 0
        self._busy, self._busy_since = 0.0, 0.0
        self._counter = StepCounter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._llm = self._run(self._start(folder, settings))
        self._context_length: int = self._llm.model_config.max_model_len
        self._adapters = VllmAdapters(
            resident_adapters(settings),
            load=lambda request: self._run(self._load(request)),
            unload=lambda number: self._run(self._unload(number)),
        )

    def submit(self, request: EngineRequest, on_event: OnEvent) -> Handle:
        """Raises AdapterNotLoaded, RequestTooLong, EngineClosed; ValueError for parameters that vLLM does not take."""
        if not 0 < len(request.token_ids) < self._context_length:
            raise RequestTooLong(f"{len(request.token_ids)} prompt tokens do not fit the context")
        if self._closed:
            raise EngineClosed("the engine is closed")
        if request.params.grammar is not None:
            raise InvalidGrammar("this store's engine does not support structured output")
        if request.params.prompt_logprobs is not None:
            raise ValueError("this store's engine does not report log-probabilities of prompts")
        handle = Handle(request, on_event)
        sequences = [
            Sequence(handle, index, self._new_detokenizer(), self._eos_ids, self._context_length)
            for index in range(request.params.n)
        ]
        work = [(sequence, sampling_params(sequence)) for sequence in sequences]
        lora = None if request.adapter is None else self._adapters.acquire(request.adapter)
        self._loop.call_soon_threadsafe(self._begin, handle, work, lora)
        return handle

    def cancel(self, handle: Handle) -> None:
        handle.cancelled = True
        if not self._closed:
            self._loop.call_soon_threadsafe(self._cancel, handle)

    def load_adapter(self, digest: str, folder: Path) -> None:
        """Between two steps of vLLM. Raises ValueError for a misfit (a rank above the setting's, say)."""
        self._adapters.put(digest, folder)

    def unload_adapter(self, digest: str) -> None:
        self._adapters.remove(digest)

    def stats(self) -> EngineStats:
        started = sum(handle.started for handle in list(self._open))
        total = self._llm.vllm_config.cache_config.num_gpu_blocks or 0
        return EngineStats(
            running=started,
            waiting=len(self._open) - started,
            blocks_used=round(self._counter.cache_usage * total) if self._open else 0,
            blocks_total=total,
            adapters=len(self._adapters),
            adapter_bytes=self._adapters.bytes,
            steps=self._counter.steps,
            prompt_tokens=self._prompt_tokens,
            produced_tokens=self._produced_tokens,
            busy_seconds=self._busy + (time.perf_counter() - self._busy_since if self._open else 0.0),
            preemptions=self._counter.preemptions,
        )

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._closed = True
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """From another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self, folder: Path, settings: GenerationSettings) -> AsyncLLM:
        return AsyncLLM.from_engine_args(engine_args(folder, settings), stat_loggers=[self._counter.attach])

    async def _stop(self) -> None:
        tasks = [task for work in self._open.values() for _, task in work]
        for handle in list(self._open):
            self._fail(handle, EngineClosed("the engine is closed"))
        await asyncio.gather(*tasks, return_exceptions=True)
        self._llm.shutdown()

    async def _load(self, request: LoRARequest) -> None:
        try:
            await self._llm.add_lora(request)
        except Exception as error:
            await self._unload(request.lora_int_id)
            raise ValueError(f"vLLM refuses the adapter: {error}") from error

    async def _unload(self, number: int) -> None:
        await self._llm.remove_lora(number)

    def _begin(self, handle: Handle, work: list[tuple[Sequence, SamplingParams]], lora: LoRARequest | None) -> None:
        if not self._open:
            self._busy_since = time.perf_counter()
        self._prompt_tokens += len(handle.request.token_ids)
        self._open[handle] = [
            (sequence, self._loop.create_task(self._produce(sequence, params, lora))) for sequence, params in work
        ]
        if self._closed:
            self._fail(handle, EngineClosed("the engine is closed"))

    async def _produce(self, sequence: Sequence, params: SamplingParams, lora: LoRARequest | None) -> None:
        """One choice from prompt to end; left early, the generator tells vLLM to abort."""
        handle = sequence.handle
        prompt = TokensPrompt(prompt_token_ids=list(handle.request.token_ids))
        outputs = self._llm.generate(prompt, params, str(next(self._ids)), lora_request=lora)
        try:
            async for output in outputs:
                self._take(sequence, output)
                if sequence.finish is not None and not output.finished:
                    break
            if sequence.finish is None:
                raise RuntimeError("vLLM ended a reply before its end")
        except EngineDeadError as error:
            self._die(error)
        except Exception as error:
            log.exception("vllm_request_failed")
            self._fail(handle, error)
        finally:
            await outputs.aclose()

    def _take(self, sequence: Sequence, output: RequestOutput) -> None:
        """Usually one token; more if vLLM was ahead of this loop. What follows a stop is not the caller's."""
        handle, (completion,) = sequence.handle, output.outputs
        handle.started = True
        handle.cached_tokens = output.num_cached_tokens or handle.cached_tokens
        wanted = sequence.params.logprobs
        for at, token in enumerate(completion.token_ids):
            if sequence.finish is not None:
                return
            position = completion.logprobs[at] if completion.logprobs else None
            logprob = None if position is None or wanted is None else token_logprob(token, position, wanted)
            self._tell(handle, sequence.append(token, logprob))

    def _tell(self, handle: Handle, event: StepEvent) -> None:
        self._produced_tokens += len(event.ids)
        try:
            handle.on_event(event)
        except Exception as error:
            log.exception("listener_failed")
            handle.error = handle.error or error
            self._loop.call_soon(self._cancel, handle)
        if event.finish is not None:
            self._ended.append(handle)
        if self._step_told:  # outputs of one step wake their tasks in one turn of the loop: end the step after them
            self._step_told = False
            self._loop.call_soon(self._end_step)

    def _end_step(self) -> None:
        self._step_told = True
        try:
            self._after_step()
        except Exception:
            log.exception("after_step_failed")
        ended, self._ended = self._ended, []
        for handle in ended:
            handle.finish_one()
            if handle.open_sequences == 0 and handle in self._open:
                self._forget(handle)

    def _cancel(self, handle: Handle) -> None:
        for sequence, task in self._open.get(handle, []):
            if sequence.finish is None:
                self._tell(handle, sequence.cancel())
                task.cancel()

    def _die(self, error: EngineDeadError) -> None:
        if not self._closed:
            self._closed = True
            log.error("vllm_engine_died")
            self._on_death()
        for handle in list(self._open):
            self._fail(handle, error)

    def _fail(self, handle: Handle, error: Exception) -> None:
        if handle not in self._open:
            return
        for sequence, task in self._open[handle]:
            sequence.finish = sequence.finish or "cancelled"
            if task is not asyncio.current_task(self._loop):
                task.cancel()
        self._forget(handle)
        handle.fail(error)

    def _forget(self, handle: Handle) -> None:
        del self._open[handle]
        if handle.request.adapter is not None:
            self._adapters.release(handle.request.adapter)
        if not self._open:
            self._busy += time.perf_counter() - self._busy_since
