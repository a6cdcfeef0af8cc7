"""The model of a run: where it computes, in which numbers, how it is loaded."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from app.fine_tuning.methods import Settings
from workers.fine_tuning.recipes import packing, pointwise
from workers.fine_tuning.recipes.changes import change_model
from workers.fine_tuning.recipes.devices import own_folder
from workers.fine_tuning.recipes.lora import adapter_from, merge, new_adapter
from workers.fine_tuning.recipes.loss import TargetLogprobs
from workers.fine_tuning.recipes.trainable import Trainable, whole_model
from workers.fine_tuning.spec import JobSpec

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def hidden_states(model: Any, pack: packing.Pack) -> Tensor:
    """[tokens, width]: what the output head sees. A sharded model (sharded.py) is called as a whole."""
    body = model if getattr(model, "is_sharded", False) else model.base_model
    given = {"input_ids": pack.ids, "position_ids": pack.positions, "attention_mask": None, "use_cache": False}
    return body(**given, pack=pack).last_hidden_state[0]


def target_logprobs(model: Any, pack: packing.Pack) -> tuple[Tensor, Tensor]:
    """Log-probability of each target of a pack, and how many were guessed right."""
    hidden = hidden_states(model, pack)
    softcap = getattr(model.config, "final_logit_softcapping", None)
    logprobs, correct = TargetLogprobs.apply(
        hidden[pack.targets], model.get_output_embeddings().weight, pack.labels, softcap
    )
    return logprobs, correct


def prepare(spec: JobSpec, settings: Settings, device: torch.device) -> tuple[Any, Trainable, Path]:
    """The model, what of it learns, and the folder of its tokenizer: an adapter on frozen weights, or all of them."""
    model, tokenizer = load_base(spec, device), Path(spec.base)
    if settings.adapter == "lora":
        if spec.parent:
            adapter = adapter_from(model, Path(spec.parent))
        else:
            adapter = new_adapter(model, spec.rank, spec.seed, settings.use_rslora)
        leave_file(model)
        pointwise.fuse(model)
        return model, adapter, tokenizer
    if spec.parent:
        merge(model, Path(spec.parent))
    if spec.model_changes:
        tokenizer = change_model(model, spec.model_changes, tokenizer, own_folder(Path(spec.work)))
    return model, whole_model(model, tokenizer), tokenizer


def load_base(spec: JobSpec, device: torch.device) -> Any:
    """The frozen base; dropout off, attention packed."""
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        spec.base, dtype=pick_dtype(spec, device), attn_implementation=packing.NAME, local_files_only=True
    )
    return model.to(device).requires_grad_(False).eval()


def leave_file(model: nn.Module) -> None:
    """Copy what still lies in the mapped file of weights: all its pages would stay for these.

    Not what learns: that is a view of the vector that the optimizer moves.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.clone()


def pick_device(spec: JobSpec) -> torch.device:
    if spec.threads:
        torch.set_num_threads(spec.threads)
    if spec.device != "auto":
        return torch.device(spec.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(spec: JobSpec, device: torch.device) -> torch.dtype:
    """`auto`: bf16 where the hardware multiplies it, else fp32."""
    if spec.dtype != "auto":
        return DTYPES[spec.dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    has = torch.cpu.get_capabilities()
    return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else torch.float32
