"""The built-in engine: one thread, one base, many adapters, one forward pass per step."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from workers.generation.engine.adapter_bank import AdapterBank
from workers.generation.engine.batch import Batch
from workers.generation.engine.grammar import Grammar, Grammars, InvalidGrammar
from workers.generation.engine.kv_cache import BLOCK_SIZE, BlockPool
from workers.generation.engine.model_runner import ModelRunner
from workers.generation.engine.prompt_logprobs import score_prompts
from workers.generation.engine.protocol import EngineClosed, EngineStats, OnEvent, RequestTooLong
from workers.generation.engine.reply_text import Detokenizer
from workers.generation.engine.request import EngineRequest, Handle, Sequence, StepEvent
from workers.generation.engine.sampler import Sampler
from workers.generation.engine.scheduler import Scheduler

log = structlog.get_logger(__name__)

GUESSING = 12  # rows: two passes over the weights' panels take little longer than one, while memory is waited for
THREADS = torch.get_num_threads()  # torch's own choice for this machine, before any thread changes it


@dataclass(frozen=True)
class EngineOptions:
    """Sizes and placement; `threads` 0 leaves torch's own choice, `kernels` False leaves out the compiled ones,
    `graphs` False leaves a GPU's decoding steps unrecorded. `lookup`: small steps are filled up with guesses.

    `quantization` int8: the base's weights in 8 bits.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "none"
    max_batch: int = 64
    max_batch_tokens: int = 512
    kv_cache_tokens: int = 65_536
    kernels: bool = True
    graphs: bool = True
    lookup: bool = True
    adapter_memory_bytes: int = 512 * 1024 * 1024
    threads: int = 0


class TorchEngine:
    """Fulfils `protocol.Engine`. `after_step` runs on the engine's thread when a step's events are out."""

    def __init__(
        self,
        folder: Path,
        *,
        detokenizer: Callable[[], Detokenizer],
        eos_ids: frozenset[int],
        options: EngineOptions,
        after_step: Callable[[], None] = lambda: None,
        grammars: Grammars | None = None,
    ) -> None:
        blocks = -(-options.kv_cache_tokens // BLOCK_SIZE)
        self.bank = AdapterBank(options.adapter_memory_bytes)
        self.model_runner: ModelRunner
        self.scheduler = Scheduler(BlockPool(blocks, BLOCK_SIZE), options.max_batch, options.max_batch_tokens)
        self._grammars = grammars
        self._new_detokenizer, self._eos_ids = detokenizer, eos_ids
        self._after_step = after_step
        self._inbox: deque[Sequence] = deque()
        self._open: set[Handle] = set()  # from `submit` to the end; guarded by `_wake`
        self._wake = threading.Condition()
        self._closed = False
        self._steps = self._prompt_tokens = self._produced_tokens = 0
        self._busy = 0.0
        loaded: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(folder, options, blocks, loaded), name="engine", daemon=True
        )
        self._thread.start()
        loaded.result()

    def step(self) -> None:
        """The whole engine at a glance."""
        batch = self.scheduler.schedule()
        logits = score_prompts(self.model_runner.forward(batch), batch)
        samples = self.sampler.sample(logits, batch)
        self.scheduler.advance(batch, samples)
        self.publish(batch)

    def publish(self, batch: Batch) -> None:
        """Tell every caller what its sequences gained; a request whose last sequence ended is done."""
        self._steps += 1
        for handle, event in batch.news:
            self._produced_tokens += len(event.ids)
            self._tell(handle, event)
        self._after_step()
        for handle, event in batch.news:
            if event.finish is not None:
                if handle.open_sequences == 1:
                    self._release(handle)  # before anyone is told: who waited may unload its adapter
                handle.finish_one()

    def _tell(self, handle: Handle, event: StepEvent) -> None:
        """A listener that breaks ends its own request only."""
        try:
            handle.on_event(event)
        except Exception as error:
            log.exception("listener_failed")
            handle.error = handle.error or error
            self.cancel(handle)

    def submit(self, request: EngineRequest, on_event: OnEvent) -> Handle:
        """Raises AdapterNotLoaded, RequestTooLong, InvalidGrammar, EngineClosed; ValueError for a token that the model
        does not have. A grammar is compiled here.
        """
        longest = len(request.token_ids) + 1
        if not request.token_ids or longest > self.model_runner.context_length:
            raise RequestTooLong(f"{len(request.token_ids)} prompt tokens do not fit the context")
        if not 0 <= min(request.token_ids) <= max(request.token_ids) < self.model_runner.vocabulary:
            raise ValueError("a token id outside the model's vocabulary")
        whole = min(len(request.token_ids) + request.params.max_tokens, self.model_runner.context_length)
        if whole > self.scheduler.cache.capacity:
            raise RequestTooLong(f"{whole} tokens do not fit the KV cache")
        handle = Handle(request, on_event, self._compile(request.params.grammar))
        context = self.model_runner.context_length
        sequences = [
            Sequence(handle, index, self._new_detokenizer(), self._eos_ids, context)
            for index in range(request.params.n)
        ]
        with self._wake:
            if self._closed:
                raise EngineClosed("the engine is closed")
            if request.adapter is not None:
                self.bank.acquire(request.adapter)
            self._open.add(handle)
            self._inbox += sequences
            self._wake.notify()
        return handle

    def _compile(self, grammar: str | None) -> Grammar | None:
        if grammar is None:
            return None
        if self._grammars is None:
            raise InvalidGrammar("this model's tokenizer does not support structured output")
        return self._grammars.compile(grammar)

    def cancel(self, handle: Handle) -> None:
        handle.cancelled = True

    def load_adapter(self, digest: str, folder: Path) -> None:
        """Read it in the caller's thread; the batch goes on. Raises ValueError for a misfit."""
        if not self.bank.has(digest):
            self.bank.put(digest, self.model_runner.read_adapter(folder))

    def unload_adapter(self, digest: str) -> None:
        self.bank.remove(digest)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=self.scheduler.waiting_count + len(self._inbox),
            blocks_used=self.scheduler.cache.used,
            blocks_total=self.scheduler.cache.total,
            adapters=len(self.bank),
            adapter_bytes=self.bank.bytes,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            produced_tokens=self._produced_tokens,
            busy_seconds=self._busy,
            preemptions=self.scheduler.preemptions,
            guessed=self.scheduler.guessed,
            guessed_right=self.scheduler.guessed_right,
        )

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _load(self, folder: Path, options: EngineOptions, blocks: int) -> None:
        """In the engine's own thread: another that did torch's work would keep a team of OpenMP threads, and when there
        are more of them than processors OpenMP sends them to sleep at once (measured: a step takes 19.5 ms, not 14).
        """
        torch.set_num_threads(options.threads or THREADS)
        self.model_runner = ModelRunner(
            folder,
            self.bank,
            device=options.device,
            dtype=options.dtype,
            blocks=blocks,
            sequences=options.max_batch,
            kernels=options.kernels,
            graphs=options.graphs,
            int8=options.quantization == "int8",
        )
        self.sampler = Sampler(self.model_runner.kernels)
        self.scheduler.guessing = GUESSING if options.lookup and self.model_runner.is_steady else 0

    def _run(self, folder: Path, options: EngineOptions, blocks: int, loaded: Future[None]) -> None:
        try:
            self._load(folder, options, blocks)
        except Exception as error:  # noqa: BLE001 (raised again by the constructor)
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        try:
            while self._receive():
                self._step_or_fail()
        finally:
            self._closed = True
            self._fail_open(EngineClosed("the engine is closed"))

    def _step_or_fail(self) -> None:
        begun = time.perf_counter()
        try:
            self.step()
        except Exception as error:
            log.exception("engine_step_failed")
            self._fail_open(error)
        self._busy += time.perf_counter() - begun

    def _receive(self) -> bool:
        """Wait for work and take new requests in; False once closed."""
        with self._wake:
            while not (self._closed or self._inbox or self.scheduler.has_work):
                self._wake.wait()
            arrived = list(self._inbox)
            self._inbox.clear()
        for sequence in arrived:
            self._prompt_tokens += sequence.prompt_length if sequence.index == 0 else 0
            self.scheduler.add(sequence)
        return not self._closed

    def _fail_open(self, error: Exception) -> None:
        """Every request that was given to the engine and has not ended, wherever it stands."""
        self.scheduler.clear()
        with self._wake:
            self._inbox.clear()
            lost = list(self._open)
        for handle in lost:
            self._release(handle)
            handle.fail(error)

    def _release(self, handle: Handle) -> None:
        with self._wake:
            self._open.discard(handle)
        if handle.request.adapter is not None:
            self.bank.release(handle.request.adapter)
