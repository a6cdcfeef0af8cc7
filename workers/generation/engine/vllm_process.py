"""How vLLM is started for one base, and what its scheduler reports."""

import json
import os
from pathlib import Path

import torch
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

from app.settings import GenerationSettings

DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp32": "float32"}


def engine_args(folder: Path, settings: GenerationSettings) -> AsyncEngineArgs:
    """On CUDA vLLM takes its share of the memory for the KV cache; on CPU `kv_cache_tokens` bounds it."""
    own, cuda = settings.vllm, uses_cuda(settings)
    resident = resident_adapters(settings)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if not cuda:
        bind_cores(settings.threads)
    return AsyncEngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        dtype=DTYPES[settings.dtype],
        max_num_seqs=settings.max_batch,
        max_num_batched_tokens=max(settings.max_batch_tokens, settings.max_batch),
        enable_prefix_caching=False,  # a request names no tenant yet, and prefixes may not be shared across tenants
        kv_cache_memory_bytes=None if cuda else settings.kv_cache_tokens * bytes_per_token(folder, settings.dtype),
        gpu_memory_utilization=own.gpu_memory,
        tensor_parallel_size=own.tensor_parallel,
        enforce_eager=not cuda if own.eager is None else own.eager,
        enable_lora=True,
        max_loras=own.adapters_per_batch if cuda else resident + 1,
        max_cpu_loras=resident if cuda else resident + 1,
        max_lora_rank=own.max_rank,
        disable_log_stats=True,
        enable_log_requests=False,
    )


def uses_cuda(settings: GenerationSettings) -> bool:
    return settings.device != "cpu" and torch.cuda.is_available()


def resident_adapters(settings: GenerationSettings) -> int:
    """How many adapters vLLM may hold.

    On CPU (0.32) a request for the base in a batch with adapters is given the weights of the last slot, so one slot
    more than there are adapters stays empty: slots fill from the first.
    """
    own = settings.vllm
    return max(own.resident_adapters, own.adapters_per_batch) if uses_cuda(settings) else own.adapters_per_batch


def bind_cores(threads: int) -> None:
    """vLLM's `auto` keeps cores for its front end, one of two on a small machine: name all, or the first `threads`."""
    cores = sorted(os.sched_getaffinity(0))[: threads or None]
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))


def bytes_per_token(folder: Path, dtype: str) -> int:
    """Keys and values of one token in all layers."""
    config = json.loads((folder / "config.json").read_text())
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * config["num_hidden_layers"] * heads * width * (4 if dtype == "fp32" else 2))


class StepCounter:
    """The last and summed figures of vLLM's scheduler; read from any thread."""

    def __init__(self) -> None:
        self.steps = self.preemptions = 0
        self.cache_usage = 0.0

    def attach(self, config: VllmConfig, engine_index: int = 0) -> StatLoggerBase:
        """vLLM's factory of stat loggers."""
        return _Recorder(self)


class _Recorder(StatLoggerBase):
    def __init__(self, counter: StepCounter) -> None:
        self._counter = counter

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            self._counter.cache_usage = scheduler_stats.kv_cache_usage
        if iteration_stats is not None:
            self._counter.steps += 1
            self._counter.preemptions += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
