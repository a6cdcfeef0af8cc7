"""How large a model a job trains: the base, the base as changed, or a new one. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from app.errors import InvalidHyperparameter, InvalidValue
from app.fine_tuning.methods import (
    MOST_NEW_PARAMETERS,
    Change,
    ExtendVocabulary,
    Method,
    Pretraining,
    RemoveLayers,
    RepeatLayers,
    WidenMlp,
)

MLP_IN = ("mlp.gate_proj", "mlp.up_proj", "mlp.c_fc")


@dataclass(frozen=True)
class Size:
    """`attention` and `mlp`: parameters of one layer's linears; `inner`: width of its MLP; `embeddings`: the rest."""

    layers: int
    width: int
    inner: int
    attention: int
    mlp: int
    embeddings: int
    tables: int = 1

    @property
    def parameters(self) -> int:
        return self.layers * (self.attention + self.mlp) + self.embeddings


def size_of_base(parameters: int, shape: Mapping[str, Any]) -> Size:
    """From what the import found (BaseFacts). All layers count as alike."""
    layers, width = max(1, shape.get("layers", 0)), shape.get("hidden_size", 0)
    linears: Mapping[str, list[int]] = shape.get("linears", {})
    mlp = sum(out * into for name, (out, into) in linears.items() if ".mlp." in name) // layers
    attention = sum(out * into for out, into in linears.values()) // layers - mlp
    inner = next((out for name, (out, _) in linears.items() if name.endswith(MLP_IN)), 0)
    rest = max(0, parameters - layers * (attention + mlp))
    tables = 2 if rest >= 2 * width * shape.get("vocabulary", 0) else 1
    return Size(layers, width, inner, attention, mlp, rest, tables)


def new_size(settings: Pretraining, vocabulary: int) -> Size:
    """About: four widths squared of attention and eight of MLP a layer, and the tied embedding."""
    square = settings.width**2
    positions = settings.context if settings.architecture == "gpt2" else 0
    embeddings = settings.width * (vocabulary + positions)
    return Size(settings.layers, settings.width, 4 * settings.width, 4 * square, 8 * square, embeddings)


def changed(size: Size, change: Change) -> Size:
    match change:
        case RepeatLayers():
            return replace(size, layers=size.layers + len(change.layers))
        case RemoveLayers():
            return replace(size, layers=max(1, size.layers - len(set(change.layers))))
        case WidenMlp():
            return replace(size, inner=change.width, mlp=size.mlp * change.width // max(1, size.inner))
        case ExtendVocabulary():
            return replace(size, embeddings=size.embeddings + len(change.tokens) * size.width * size.tables)


def sizes(method: Method, parameters: int, shape: Mapping[str, Any]) -> list[Size]:
    """Of the model that training begins with, then of what each change makes of it; the last one is trained."""
    if isinstance(method.settings, Pretraining):
        own = method.settings.tokenizer == "train"
        return [new_size(method.settings, method.settings.vocabulary if own else shape.get("vocabulary", 0))]
    found = [size_of_base(parameters, shape)]
    for change in method.changes:
        found.append(changed(found[-1], change))
    return found


def parameters_of(method: Method, parameters: int, shape: Mapping[str, Any]) -> int:
    """Of the model that is trained; `parameters` and `shape` are its base's."""
    return sizes(method, parameters, shape)[-1].parameters


def check_size(method: Method, parameters: int, shape: Mapping[str, Any]) -> None:
    """A model may not be made larger than the store allows. Raises InvalidHyperparameter, InvalidValue."""
    most = max(each.parameters for each in sizes(method, parameters, shape))
    if method.type == "pretraining" and most > MOST_NEW_PARAMETERS:
        text = f"A new model has at most {MOST_NEW_PARAMETERS} parameters; this one would have {most}."
        raise InvalidHyperparameter(text, param="method.pretraining.hyperparameters.layers")
    if method.changes and most > max(MOST_NEW_PARAMETERS, parameters):
        text = f"A changed model has at most {MOST_NEW_PARAMETERS} parameters; this one would have {most}."
        raise InvalidValue(text, param=f"method.{method.type}.model_changes")
