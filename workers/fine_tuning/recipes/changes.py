"""Changing a model before it is trained: deeper, shallower, wider, with more words. Llama's and GPT-2's layouts.

Deeper and wider models compute what they computed before, until they learn.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn

from app.fine_tuning.changes import trouble_adding, trouble_removing, trouble_repeating, trouble_widening
from workers.fine_tuning.recipes.refusal import Refused

# Where each family keeps its layers, and inside a layer: what writes to the residual, the MLP's way in and out.
WRITERS = ("self_attn.o_proj", "mlp.down_proj", "attn.c_proj", "mlp.c_proj")
MLP_IN = ("mlp.gate_proj", "mlp.up_proj", "mlp.c_fc")
MLP_OUT = ("mlp.down_proj", "mlp.c_proj")


def change_model(model: Any, changes: Sequence[Mapping[str, Any]], tokenizer: Path, work: Path) -> Path:
    """Make the changes in order; returns the folder of the tokenizer to use from now on. Raises Refused."""
    for change in changes:
        match change["type"]:
            case "repeat_layers":
                repeat_layers(model, change["layers"])
            case "remove_layers":
                remove_layers(model, change["layers"])
            case "widen_mlp":
                widen_mlp(model, change["width"])
            case "extend_vocabulary":
                tokenizer = extend_vocabulary(model, change["tokens"], tokenizer, work / "tokenizer")
    return tokenizer


@torch.no_grad()
def repeat_layers(model: Any, numbers: Sequence[int]) -> None:
    """A copy after each of these layers; what it writes to the residual stream begins as zero."""
    layers = list(layers_of(model))
    refuse_if(trouble_repeating(len(layers), numbers))
    deeper = []
    for number, layer in enumerate(layers):
        deeper.append(layer)
        for _ in range(list(numbers).count(number)):
            twin = copy.deepcopy(layer)
            for writer in found(twin, WRITERS):
                writer.weight.zero_()
                if writer.bias is not None:
                    writer.bias.zero_()
            deeper.append(twin)
    set_layers(model, deeper, lambda kinds: [kind for number, kind in enumerate(kinds) for _ in twins(number, numbers)])


def twins(number: int, numbers: Sequence[int]) -> range:
    return range(1 + list(numbers).count(number))


@torch.no_grad()
def remove_layers(model: Any, numbers: Sequence[int]) -> None:
    layers = list(layers_of(model))
    refuse_if(trouble_removing(len(layers), numbers))
    left = [layer for number, layer in enumerate(layers) if number not in numbers]
    set_layers(model, left, lambda kinds: [kind for number, kind in enumerate(kinds) if number not in numbers])


@torch.no_grad()
def widen_mlp(model: Any, width: int) -> None:
    """Neurons are repeated in turn; each copy takes an equal part of the outgoing weight."""
    for layer in layers_of(model):
        ways_in, ways_out = found(layer, MLP_IN), found(layer, MLP_OUT)
        old = outputs(ways_in[0]) if ways_in else 0
        refuse_if(trouble_widening(old, width))
        source = (torch.arange(width) % old).to(ways_in[0].weight.device)
        share = torch.bincount(source, minlength=old)[source]
        for way in ways_in:
            resize(way, weight_of(way).index_select(0, source), None if way.bias is None else way.bias[source])
        for way in ways_out:
            resize(way, weight_of(way).index_select(1, source) / share.to(weight_of(way).dtype), way.bias)
    name = "n_inner" if model.config.model_type == "gpt2" else "intermediate_size"
    setattr(model.config, name, width)


@torch.no_grad()
def extend_vocabulary(model: Any, tokens: Sequence[str], tokenizer: Path, folder: Path) -> Path:
    """New tokens in tokenizer and embeddings, each beginning as the mean of the pieces that spelled it."""
    old = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    refuse_if(trouble_adding(tokens, [token for token in tokens if old.token_to_id(token) is not None]))
    new = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    new.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    ids = [id for token in tokens if (id := new.token_to_id(token)) is not None]
    pieces = [old.encode(token, add_special_tokens=False).ids for token in tokens]
    tables = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    model.resize_token_embeddings(max(max(ids) + 1, len(tables[0])), mean_resizing=False)
    for table, resized in zip(tables, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        for id, spelling in zip(ids, pieces, strict=True):
            resized.weight[id] = table[spelling].float().mean(0).to(table.dtype)
    folder.mkdir(parents=True, exist_ok=True)
    for path in tokenizer.iterdir():
        if path.name in (
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
            "generation_config.json",
        ):
            (folder / path.name).write_bytes(path.read_bytes())
    new.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(model.config.to_json_string())
    return folder


def layers_of(model: Any) -> nn.ModuleList:
    return model.base_model.h if model.config.model_type == "gpt2" else model.base_model.layers


def set_layers(model: Any, layers: Sequence[nn.Module], choose: Callable[[list[Any]], list[Any]]) -> None:
    """Put them in place of the old ones; `choose` does the same with the config's list of layer kinds."""
    container = "h" if model.config.model_type == "gpt2" else "layers"
    for number, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", number)  # noqa: B010 (any module)
    setattr(model.base_model, container, nn.ModuleList(layers))
    kinds = getattr(model.config, "layer_types", None)
    model.config.num_hidden_layers = len(layers)
    if kinds is not None:
        model.config.layer_types = choose(list(kinds))


def found(layer: nn.Module, names: Sequence[str]) -> list[Any]:
    modules = dict(layer.named_modules())
    return [modules[name] for name in names if name in modules]


def outputs(module: Any) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.nf)


def weight_of(module: Any) -> Tensor:
    """[out, in]; GPT-2's Conv1D keeps it the other way round."""
    weight: Tensor = module.weight.detach()
    return weight if isinstance(module, nn.Linear) else weight.t()


def resize(module: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Give a linear another weight [out, in]."""
    linear = isinstance(module, nn.Linear)
    module.weight = nn.Parameter((weight if linear else weight.t()).contiguous(), requires_grad=False)
    module.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    if linear:
        module.out_features, module.in_features = weight.shape
    else:
        module.nf, module.nx = weight.shape


def refuse_if(trouble: str | None) -> None:
    """Raises Refused."""
    if trouble:
        text = f"The model cannot be changed like this: {trouble}."
        raise Refused("invalid_model_change", text, "method.model_changes")
