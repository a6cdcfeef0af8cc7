"""Who takes part, in which interpreter. A peer that is not installed says so; nothing is made up for it.

| peer | found by |
|---|---|
| transformers | always; `generate`, and for the base its continuous batching |
| vllm | `.venv-vllm` (`make bench PEERS=vllm` makes it) or VLLM_PYTHON; with TCMALLOC's or the system's libtcmalloc |
| openvino | OPENVINO_PYTHON, and OPENVINO_MODEL: `optimum-cli export openvino --weight-format fp16` of the base |
| llama.cpp | LLAMA_SERVER (the binary), LLAMA_MODEL (bf16 GGUF of the base), LLAMA_LORA (folder of 0.gguf … 15.gguf) |
"""

import ctypes.util
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PEERS = ("transformers", "vllm", "openvino", "llama.cpp")


@dataclass(frozen=True)
class Turn:
    """One child process. `missing` says why there is none."""

    name: str
    subject: str
    adapters: int
    python: str = sys.executable
    option: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""


def turns(peers: list[str], counts: list[int]) -> Iterator[Turn]:
    """Ours first, then each peer, for each number of adapters (0: the base alone)."""
    makers = {"transformers": transformers, "vllm": vllm, "openvino": openvino, "llama.cpp": llama}
    for count in counts:
        yield Turn("gptstore", "benchmarks.ours:OurEngine", count)
        if not count:
            yield Turn("gptstore, no guesses", "benchmarks.ours:OurEngine", count, option="plain")
    for name in peers:
        for count in counts:
            yield from makers[name](count)


def transformers(adapters: int) -> Iterator[Turn]:
    yield Turn("transformers", "benchmarks.peers.transformers_generate:TransformersGenerate", adapters)
    if not adapters:
        yield Turn("transformers continuous", "benchmarks.peers.transformers_continuous:TransformersContinuous", 0)


def vllm(adapters: int) -> Iterator[Turn]:
    python = Path(os.environ.get("VLLM_PYTHON") or ".venv-vllm/bin/python")
    missing = "" if python.exists() else "not installed"
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": cores,  # `auto` leaves cores to the front end, one of two here
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: faster with one stream
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "LD_PRELOAD": " ".join(preloads(python)),
    }
    modes = ("compile", "eager") if adapters else ("compile", "eager", "guessing")
    for mode in modes:
        yield Turn(
            f"vLLM {mode}", "benchmarks.peers.vllm_cpu:VllmCpu", adapters, str(python), mode, environment, missing
        )


def preloads(python: Path) -> Iterator[str]:
    """The allocator and the OpenMP that vLLM's own guide for CPUs asks for."""
    tcmalloc = os.environ.get("TCMALLOC") or ctypes.util.find_library("tcmalloc_minimal")
    if tcmalloc:
        yield tcmalloc
    yield from (str(file.absolute()) for file in python.parent.parent.glob("lib/libiomp5.so"))


def openvino(adapters: int) -> Iterator[Turn]:
    python, model = os.environ.get("OPENVINO_PYTHON", ""), os.environ.get("OPENVINO_MODEL", "")
    missing = "" if python and model else "not installed"
    yield Turn(
        "OpenVINO GenAI", "benchmarks.peers.openvino_genai:OpenVinoGenAi", adapters, python, model, missing=missing
    )


def llama(adapters: int) -> Iterator[Turn]:
    server, model = os.environ.get("LLAMA_SERVER", ""), os.environ.get("LLAMA_MODEL", "")
    loras = os.environ.get("LLAMA_LORA", "")
    missing = "" if server and model and (loras or not adapters) else "not installed"
    option = "|".join([server, model, loras])
    yield Turn("llama.cpp", "benchmarks.peers.llama_server:LlamaServer", adapters, option=option, missing=missing)
