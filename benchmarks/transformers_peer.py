"""transformers' own `generate` with left padding, bf16: the peer that everybody has at hand."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.protocol import NEW_TOKENS


class TransformersPeer:
    label = "transformers generate"
    model = "base"

    def __init__(self, base: Path) -> None:
        self.network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]]) -> int:
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), 2)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": -1, "pad_token_id": 2}
        output = self.network.generate(input_ids=ids, attention_mask=mask, **options)
        return int(output.shape[1] - width) * len(prompts)

    def close(self) -> None:
        del self.network
