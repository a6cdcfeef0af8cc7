"""What weights of 8 bits cost and bring: perplexity, other likeliest tokens, memory and speed beside bf16 and fp32."""

import argparse
import gc
import math
from collections.abc import Iterator

import psutil
import torch
from torch import Tensor

from app.inference.wire_events import SamplingParams
from benchmarks.ours import OurEngine
from benchmarks.protocol import DECODE_TOKENS, NEW_TOKENS, Line, Prompts, Setup, Task, throughput
from workers.generation.engine.engine import EngineOptions
from workers.generation.engine.request import EngineRequest, StepEvent

FORMS = {
    "fp32": EngineOptions(dtype="fp32"),
    "bf16": EngineOptions(),
    "int8": EngineOptions(quantization="int8"),
}
STREAMS = {"mixed": (1, 16, 64), "decode": (16, 64)}
MEGABYTE = 1024 * 1024


def int8(setup: Setup, prompts: Prompts, given: argparse.Namespace) -> Iterator[Line]:
    """Quality over all tokens of the mixed prompts, each given those before it; `bf16` is the machine's own choice."""
    exact: Tensor | None = None
    tasks = [Task("mixed", prompts.mixed, NEW_TOKENS), Task("decode", prompts.short, DECODE_TOKENS)]
    for name, options in FORMS.items():
        for adapters in (setup.adapters, ()):
            own = Setup(setup.base, adapters, max(STREAMS["mixed"]))
            before = psutil.Process().memory_info().rss
            ours = OurEngine(own, options)
            ours.label = f"gptstore {name}"
            if not adapters:
                added = (psutil.Process().memory_info().rss - before) / MEGABYTE
                yield Line(ours.label, "memory added by engine and base", added, unit="MB")
                chances, likeliest = scores(ours, prompts.mixed)
                exact = likeliest if exact is None else exact
                yield Line(ours.label, "perplexity", math.exp(-chances.mean()), unit="", streams=len(chances))
                other = 1e5 * float((likeliest != exact).double().mean())
                yield Line(ours.label, "other likeliest token", other, unit="per 100,000", streams=len(exact))
            for task in tasks if name != "fp32" else ():
                yield from throughput(ours, own, task, STREAMS[task.name], given.seconds)
            ours.close()
            del ours
            gc.collect()


def scores(ours: OurEngine, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the prompts' tokens but the first, and the likeliest tokens in their places."""
    told: list[list[StepEvent]] = [[] for _ in prompts]
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
    handles = [
        ours.engine.submit(EngineRequest(tuple(prompt), params, None, "one"), events.append)
        for prompt, events in zip(prompts, told, strict=True)
    ]
    for handle in handles:
        handle.wait()
        if handle.error is not None:
            raise handle.error
    found = [each for events in told for event in events for each in event.prompt_logprobs]
    return torch.tensor([each.logprob for each in found]), torch.tensor([each.top[0][0] for each in found])
