"""What all engines share: the base, 16 LoRA adapters of rank 8 on all linears, and the prompts as token ids."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from app.cli.demo_data import dialogues
from benchmarks.protocol import Prompts
from models_registry.prompt import Message, Renderer
from workers.model_import.convert import convert

ADAPTERS, RANK, ALPHA = 16, 8, 16
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHORTEST, LONGEST, STREAMS = 20, 400, 64
SHORT, SHARED, ENDS = 16, 1500, 6


def prepare(work: Path, source: str) -> None:
    """Fill the folder; what is there already stays."""
    base = work / "base"
    if not base.exists():
        base.mkdir(parents=True)
        convert(source, base)
    if not (work / "adapters").exists():
        make_adapters(base, work / "adapters")
    if not (work / "prompts.json").exists():
        (work / "prompts.json").write_text(json.dumps(asdict(make_prompts(base))))


def make_adapters(base: Path, folder: Path) -> None:
    """Random ones, small enough that greedy answers stay words."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=LINEARS, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config)
    for number in range(ADAPTERS):
        torch.manual_seed(number)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if ".lora_" in name:
                    weight.normal_(std=0.02)
        adapted.save_pretrained(folder / str(number))


def make_prompts(base: Path) -> Prompts:
    """Cut from real dialogues in a fixed shuffle. Mixed lengths are spread evenly; any first N look like all."""
    renderer = Renderer.load(base)
    chance = random.Random(1234)  # noqa: S311 (a protocol, not a secret)
    words = renderer.encode(" ".join(f"{question} {answer}" for question, answer in sorted(set(dialogues()))))
    frame = renderer.chat([Message("user", "\N{SPEECH BALLOON}")])
    mark = renderer.encode("\N{SPEECH BALLOON}")
    at = next(i for i in range(len(frame)) if frame[i : i + len(mark)] == mark)
    before, after = frame[:at], frame[at + len(mark) :]

    def text(length: int) -> list[int]:
        start = chance.randrange(len(words))
        return [words[(start + each) % len(words)] for each in range(length)]

    def prompt(length: int) -> list[int]:
        if length <= len(before) + len(after):
            return [*text(length - len(after)), *after]
        return [*before, *text(length - len(before) - len(after)), *after]

    lengths = [SHORTEST + (LONGEST - SHORTEST) * number // (STREAMS - 1) for number in range(STREAMS)]
    shared = text(SHARED)
    return Prompts(
        mixed=[prompt(length) for length in spread(lengths)],
        short=[text(SHORT) for _ in range(STREAMS)],
        first=prompt(LONGEST),
        long=[[*shared, *text(SHORT)] for _ in range(ENDS)],
    )


def spread(lengths: list[int]) -> list[int]:
    """The middle one first, then 15 that span the range, then the rest: 1, 16 and 64 streams have like means."""
    middle = len(lengths) // 2
    spanning = [round(i * (len(lengths) - 1) / 14) for i in range(15)]
    order = [middle, *(i for i in spanning if i != middle)]
    order += [i for i in range(0, len(lengths), 2) if i not in order] + [i for i in range(1, len(lengths), 2)]
    return [lengths[i] for i in dict.fromkeys(order)]
