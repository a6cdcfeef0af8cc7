"""transformers' own continuous batching (paged attention, on a GPU with its CUDA graphs), bf16. It has no adapters."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from benchmarks.protocol import DECODE_TOKENS, Setup

PLACES = 65_536  # for keys and values, as ours has by default


class TransformersContinuous:
    label = "transformers continuous"

    def __init__(self, setup: Setup) -> None:
        disable_progress_bar()
        self.version = transformers.__version__
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = AutoModelForCausalLM.from_pretrained(
            setup.base, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        self.network = self.network.to(device).eval()
        # No prompt is found in its cache: shared blocks are off.
        paging = ContinuousBatchingConfig(
            num_blocks=PLACES // ContinuousBatchingConfig.page_size,
            max_requests_per_batch=setup.streams,
            allow_block_sharing=False,
        )
        generation = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=DECODE_TOKENS)
        self.manager: Any = self.network.init_continuous_batching(
            generation_config=generation, continuous_batching_config=paging
        )
        self.manager.start()

    def generate(self, prompts: Sequence[list[int]], new: int) -> int:
        waiting = set(self.manager.add_requests(inputs=[*prompts], max_new_tokens=new))
        made = 0
        while waiting:
            result = self.manager.get_result(timeout=60)
            if result is None or result.error is not None:
                raise RuntimeError(result.error if result else "transformers gave no answer")
            if result.is_finished():
                made += len(result.generated_tokens)
                waiting.discard(result.request_id)
        return made

    def close(self) -> None:
        self.manager.stop(block=True)
