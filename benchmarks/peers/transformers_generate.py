"""transformers' own `generate` with left padding, bf16; adapters through PEFT's mixed batches: always at hand."""

from collections.abc import Sequence

import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.protocol import Setup

PAD = 2


class TransformersGenerate:
    label = "transformers"

    def __init__(self, setup: Setup) -> None:
        disable_progress_bar()
        self.version = transformers.__version__
        self.names = [f"a{folder.name}" for folder in setup.adapters]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = AutoModelForCausalLM.from_pretrained(setup.base, dtype=torch.bfloat16).to(device).eval()
        for name, folder in zip(self.names, setup.adapters, strict=True):
            if isinstance(self.network, PeftModel):
                self.network.load_adapter(str(folder), adapter_name=name)
            else:
                self.network = PeftModel.from_pretrained(self.network, str(folder), adapter_name=name).eval()

    @torch.inference_mode()
    def generate(self, prompts: Sequence[list[int]], new: int) -> int:
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), PAD)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        options: dict[str, object] = {"max_new_tokens": new, "do_sample": False, "eos_token_id": -1}
        if self.names:
            options["adapter_names"] = [self.names[row % len(self.names)] for row in range(len(prompts))]
        device = self.network.device
        output = self.network.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), pad_token_id=PAD, **options
        )
        return int(output.shape[1] - width) * len(prompts)

    def close(self) -> None:
        del self.network
