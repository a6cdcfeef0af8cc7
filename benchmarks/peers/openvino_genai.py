"""OpenVINO GenAI's continuous batching, bf16; `option`: the folder of its export of the same base (see roster.py).

Mixed adapters in one call raise no error, yet all requests get the first one's: so it goes adapter by adapter.
"""

import json
import os
from collections.abc import Sequence

import numpy as np
import openvino as ov
import openvino_genai as og

from benchmarks.protocol import Setup

CACHE_GB = 2


class OpenVinoGenAi:
    label = "OpenVINO GenAI"

    def __init__(self, setup: Setup) -> None:
        self.version = og.__version__
        scheduler = og.SchedulerConfig()
        scheduler.cache_size, scheduler.max_num_seqs, scheduler.enable_prefix_caching = CACHE_GB, setup.streams, False
        scheduler.max_num_batched_tokens = 2048
        options: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16"}
        options["INFERENCE_NUM_THREADS"] = len(os.sched_getaffinity(0))
        files = [folder / "adapter_model.safetensors" for folder in setup.adapters]
        self.adapters = [og.Adapter(str(file)) for file in files]
        self.scales = [scale(json.loads((file.parent / "adapter_config.json").read_text())) for file in files]
        if self.adapters:
            options["adapters"] = og.AdapterConfig(self.adapters)
        tokenizer = og.Tokenizer(setup.option)
        self.pipeline = og.ContinuousBatchingPipeline(setup.option, tokenizer, scheduler, "CPU", **options)

    def generate(self, prompts: Sequence[list[int]], new: int) -> int:
        groups = range(len(self.adapters)) if self.adapters else [None]
        made = 0
        for adapter in groups:
            own = prompts if adapter is None else prompts[adapter :: len(self.adapters)]
            if own:
                tensors = [ov.Tensor(np.array([prompt], dtype=np.int64)) for prompt in own]
                outputs = self.pipeline.generate(tensors, [self._config(new, adapter)] * len(own))
                made += sum(len(output.m_generation_ids[0]) for output in outputs)
        return made

    def _config(self, new: int, adapter: int | None) -> "og.GenerationConfig":
        config = og.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        if adapter is not None:
            config.adapters = og.AdapterConfig([(self.adapters[adapter], self.scales[adapter])])
        return config

    def close(self) -> None:
        del self.pipeline


def scale(config: dict[str, float]) -> float:
    """alpha / rank, which OpenVINO does not read from PEFT's files."""
    return config["lora_alpha"] / config["r"]
