"""What a model says to a few held-out prompts, greedily: shown before and after training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models_registry.prompt import Renderer
from workers.fine_tuning.recipes import packing
from workers.fine_tuning.recipes.model import hidden_states
from workers.fine_tuning.recipes.rows import Row

PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 2, 128, 16
TEXT_PROMPT_TOKENS = 16


def prompts_of(rows: Sequence[Row]) -> list[list[int]]:
    """Up to the first target; of raw text its first tokens. Rows that show what is unwanted are left out."""
    found = []
    for row in rows:
        begin = row.mask.index(True)
        cut = row.fork[0] if row.fork else begin if begin > 1 else TEXT_PROMPT_TOKENS
        if not row.unwanted and cut < len(row.ids):
            found.append(list(row.ids[:cut])[-PROMPT_TOKENS:])
        if len(found) == PROMPTS:
            break
    return found


@torch.no_grad()
def answers(model: Any, tokenizer: Path, prompts: Sequence[Sequence[int]], device: torch.device) -> list[str]:
    """All prompts together, one pass a token: few and short, so no cache is worth its code."""
    renderer = Renderer.load(tokenizer)
    ids = [list(prompt) for prompt in prompts]
    for _ in range(ANSWER_TOKENS):
        going = [each for each, prompt in zip(ids, prompts, strict=True) if not ended(each, prompt, renderer)]
        if not going:
            break
        pack = packing.pack([Row(each, [False] * len(each)) for each in going], device)
        hidden = hidden_states(model, pack)
        ends = torch.tensor([len(each) for each in going], device=device).cumsum(0) - 1
        logits = hidden[ends] @ model.get_output_embeddings().weight.t()
        for each, token in zip(going, logits.argmax(-1).tolist(), strict=True):
            each.append(token)
    return [renderer.decode(said(each, prompt, renderer)) for each, prompt in zip(ids, prompts, strict=True)]


def ended(ids: Sequence[int], prompt: Sequence[int], renderer: Renderer) -> bool:
    return len(ids) > len(prompt) and ids[-1] in renderer.eos_ids


def said(ids: Sequence[int], prompt: Sequence[int], renderer: Renderer) -> list[int]:
    return [token for token in ids[len(prompt) :] if token not in renderer.eos_ids]
