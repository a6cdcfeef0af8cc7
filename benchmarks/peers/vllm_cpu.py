"""vLLM on CPU in its own process; `option`: `compile`, `eager` (with adapters the faster one) or `guessing`: compiled,
with tokens looked up in the prompt as ours has them.
"""

from collections.abc import Sequence

import vllm
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from benchmarks.protocol import Setup

CACHE_BYTES = 2 * 1024**3
LONGEST = 2048
GUESSES = 5  # of a sequence in a step; with 11, as many as ours makes, it was slower


class VllmCpu:
    def __init__(self, setup: Setup) -> None:
        self.label, self.version = f"vLLM {setup.option}", vllm.__version__
        count = len(setup.adapters)
        self.adapters = [
            LoRARequest(folder.name, number + 1, str(folder)) for number, folder in enumerate(setup.adapters)
        ]
        more: dict[str, object] = {"enable_lora": True, "max_loras": count, "max_lora_rank": 8} if count else {}
        if setup.option == "guessing":
            lookup = {"prompt_lookup_min": 2, "prompt_lookup_max": 2}
            more["speculative_config"] = {"method": "ngram", "num_speculative_tokens": GUESSES} | lookup
        self.engine = LLM(
            model=str(setup.base),
            dtype="bfloat16",
            max_model_len=LONGEST,
            max_num_seqs=setup.streams,
            enforce_eager=setup.option == "eager",
            enable_prefix_caching=False,
            kv_cache_memory_bytes=CACHE_BYTES,
            **more,
        )

    def generate(self, prompts: Sequence[list[int]], new: int) -> int:
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        chosen = [self.adapters[i % len(self.adapters)] for i in range(len(prompts))] if self.adapters else None
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self.engine.generate(asked, params, use_tqdm=False, lora_request=chosen)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    def close(self) -> None:
        del self.engine
