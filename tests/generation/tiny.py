"""Tiny random models and adapters of each family, and what transformers + PEFT says they should answer."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from app.inference.wire_events import SamplingParams
from workers.generation.engine.engine import EngineOptions, TorchEngine
from workers.generation.engine.protocol import Engine
from workers.generation.engine.request import EngineRequest, Handle, StepEvent

VOCABULARY = 300
CONTEXT = 256
FAMILIES = ["llama", "gpt2", "gemma3", "qwen3"]
WINDOW = 16


class Spelled:
    """A detokenizer for models without a tokenizer: token 7 reads `7 `."""

    def push(self, token: int) -> str:
        return f"{token} "

    def flush(self) -> str:
        return ""


def new_model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=64,
                n_layer=3,
                n_head=4,
                n_positions=CONTEXT,
                initializer_range=0.3,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
    }
    if family == "gemma3":
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        # Its embeddings are scaled up: tied to the head, a random model would only repeat its last token.
        config = Gemma3TextConfig(
            **common | {"tie_word_embeddings": False},
            head_dim=24,
            sliding_window=WINDOW,
            layer_types=kinds,
            bos_token_id=0,
            eos_token_id=0,
        )
        return Gemma3ForCausalLM(config)
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**common, head_dim=16, attention_bias=True))
    return LlamaForCausalLM(LlamaConfig(**common, head_dim=32))  # vLLM has no kernel for smaller heads


def save_family(family: str, root: Path) -> Path:
    """`root/base` and adapters `a0`…`a3` of ranks 4…16 on more and more of the linears."""
    gated = ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    targets = ["c_attn", "c_proj", "c_fc"] if family == "gpt2" else gated
    new_model(family).save_pretrained(root / "base")
    for number in range(4):
        torch.manual_seed(number + 1)
        config = LoraConfig(
            r=4 * (number + 1),
            lora_alpha=8,
            target_modules=targets[: 1 + 2 * number],
            init_lora_weights=False,
            fan_in_fan_out=family == "gpt2",
            use_rslora=number == 3,
        )
        get_peft_model(AutoModelForCausalLM.from_pretrained(root / "base"), config).save_pretrained(root / f"a{number}")
    return root


def reference(root: Path, adapter: str | None, ids: list[int], new: int) -> list[int]:
    """Greedy tokens of transformers + PEFT in fp32."""
    model = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, root / adapter).eval()
    prompt = torch.tensor([ids])
    answer = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return [int(token) for token in answer[0, len(ids) :]]


def start_engine(root: Path, **changes: Any) -> TorchEngine:
    """`changes` of the options; and `eos_ids`, none unless told."""
    eos_ids = changes.pop("eos_ids", frozenset())
    options: dict[str, Any] = {"dtype": "fp32", "kv_cache_tokens": 2048, "max_batch_tokens": 64} | changes
    engine = TorchEngine(
        root / "base",
        detokenizer=Spelled,
        eos_ids=eos_ids,
        options=EngineOptions(**options),
    )
    for number in range(4):
        engine.load_adapter(f"a{number}", root / f"a{number}")
    return engine


@dataclass
class Answer:
    """Everything one request told, by choice."""

    handle: Handle
    events: list[StepEvent]

    def wait(self) -> "Answer":
        assert self.handle.wait(60)
        assert self.handle.error is None, self.handle.error
        return self

    def ids(self, index: int = 0) -> list[int]:
        return [token for event in self.events if event.index == index for token in event.ids]

    def text(self, index: int = 0) -> str:
        return "".join(event.text for event in self.events if event.index == index)

    def finish(self, index: int = 0) -> str | None:
        return next(event.finish for event in self.events if event.index == index and event.finish)


class Held:
    """A listener that keeps its request where it is, from its first token until the end of `with`."""

    def __init__(self) -> None:
        self._begun, self._over = threading.Event(), threading.Event()

    def __call__(self, _: StepEvent) -> None:
        self._begun.set()
        assert self._over.wait(30)

    def __enter__(self) -> None:
        assert self._begun.wait(30)

    def __exit__(self, *_: object) -> None:
        self._over.set()


def ask(
    engine: Engine,
    ids: list[int],
    adapter: str | None = None,
    on_event: Callable[[StepEvent], None] | None = None,
    **params: object,
) -> Answer:
    """Submit; greedy and 24 tokens unless told otherwise."""
    events: list[StepEvent] = []

    def hear(event: StepEvent) -> None:
        events.append(event)
        if on_event is not None:
            on_event(event)

    wanted = SamplingParams.model_validate({"max_tokens": 24, "temperature": 0} | params)
    return Answer(engine.submit(EngineRequest(tuple(ids), wanted, adapter), hear), events)


def prompts(count: int, seed: int = 9) -> list[list[int]]:
    """Of 5, 9, 13, … random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (5 + 4 * i,), generator=generator).tolist() for i in range(count)]
