"""The built-in engine, in process, as a worker runs it."""

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from app.inference.wire_events import SamplingParams
from benchmarks.protocol import NEW_TOKENS
from models_registry.prompt import Detokenizer, Renderer
from workers.generation.engine.engine import EngineOptions, TorchEngine
from workers.generation.engine.request import EngineRequest

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class OurEngine:
    """`adapters` LoRA adapters of rank 8 on all linears; stream i uses adapter i modulo their number."""

    label = "gptstore"

    def __init__(self, base: Path, adapters: int) -> None:
        self.model = f"base + {adapters} fine-tunes" if adapters else "base"
        renderer = Renderer.load(base)
        self.engine = TorchEngine(
            base,
            detokenizer=lambda: Detokenizer(renderer),
            eos_ids=renderer.eos_ids,
            options=EngineOptions(),
        )
        self.adapters = [f"a{number}" for number in range(adapters)]
        with tempfile.TemporaryDirectory() as folder:
            for name in self.adapters:
                make_adapter(base, Path(folder) / name)
                self.engine.load_adapter(name, Path(folder) / name)

    def generate(self, prompts: list[list[int]]) -> int:
        params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
        made = 0

        def count(event: object) -> None:
            nonlocal made
            made += len(getattr(event, "ids", ()))

        handles = []
        for number, prompt in enumerate(prompts):
            adapter = self.adapters[number % len(self.adapters)] if self.adapters else None
            handles.append(self.engine.submit(EngineRequest(tuple(prompt), params, adapter), count))
        for handle in handles:
            handle.wait()
        return made

    def close(self) -> None:
        self.engine.close()


def make_adapter(base: Path, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder)
