"""The ways of training: what each method can be told, which rows it wants, where its rates begin. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from app.errors import InvalidHyperparameter, InvalidValue
from app.wire import Strict

Auto = Literal["auto"]
LORA, NONE = "lora", "none"
DEFAULT_BETA, DEFAULT_UNWANTED_WEIGHT = 0.1, 1.0
MOST_BLOCK, PRETRAINING_CONTEXT = 2048, 512
MOST_NEW_PARAMETERS = 1_000_000_000


class Settings(Strict):
    """What a method can be told beside epochs, batch, rate and rank. `adapter` none trains every weight."""

    adapter: Literal["lora", "none"] = "lora"
    use_rslora: bool = False


class Supervised(Settings):
    """`loss_on`: the assistant's turns, or what every role says."""

    loss_on: Literal["assistant", "all"] = "assistant"


class Dpo(Settings):
    """Direct preference optimisation (arXiv 2305.18290); `beta` holds the model to where it began."""

    adapter: Literal["lora"] = "lora"
    beta: Auto | Annotated[float, Field(gt=0, le=10)] = "auto"

    @property
    def strength(self) -> float:
        return DEFAULT_BETA if isinstance(self.beta, str) else self.beta


class Unlikelihood(Settings):
    """Unlikelihood training (arXiv 1908.04319): rows marked `unwanted` weigh `unwanted_weight`, the others 1."""

    unwanted_weight: Auto | Annotated[float, Field(gt=0, le=100)] = "auto"

    @property
    def weight(self) -> float:
        return DEFAULT_UNWANTED_WEIGHT if isinstance(self.unwanted_weight, str) else self.unwanted_weight


class ContinuedPretraining(Settings):
    """`context`: tokens of a block of text."""

    context: Auto | Annotated[int, Field(ge=16, le=8192)] = "auto"

    def block(self, most: int) -> int:
        return min(most, MOST_BLOCK if isinstance(self.context, str) else self.context)


class Pretraining(Strict):
    """A new model. `tokenizer` train: byte-level BPE of `vocabulary` tokens, made from the data; base: the base's."""

    adapter: Literal["none"] = "none"
    architecture: Literal["gpt2", "llama"] = "llama"
    layers: int = Field(default=6, ge=1, le=48)
    width: int = Field(default=256, ge=16, le=4096)
    heads: int = Field(default=4, ge=1, le=64)
    context: int = Field(default=PRETRAINING_CONTEXT, ge=16, le=8192)
    tokenizer: Literal["train", "base"] = "train"
    vocabulary: int = Field(default=4096, ge=272, le=100_000)


AnySettings = Supervised | Dpo | Unlikelihood | ContinuedPretraining | Pretraining
SETTINGS: Mapping[str, type[AnySettings]] = {
    "supervised": Supervised,
    "dpo": Dpo,
    "unlikelihood": Unlikelihood,
    "continued_pretraining": ContinuedPretraining,
    "pretraining": Pretraining,
}
# What a file's rows must be, as its report names them.
KINDS: Mapping[str, frozenset[str]] = {
    "supervised": frozenset({"chat", "completion"}),
    "dpo": frozenset({"preference"}),
    "unlikelihood": frozenset({"chat", "completion"}),
    "continued_pretraining": frozenset({"text"}),
    "pretraining": frozenset({"text"}),
}
LORA_RATES = {"supervised": 1e-3, "dpo": 2e-4, "unlikelihood": 5e-4, "continued_pretraining": 1e-3}
FULL_RATE, PRETRAINING_RATE = 1e-4, 1e-3

Layers = Annotated[list[Annotated[int, Field(ge=0, lt=256)]], Field(min_length=1, max_length=64)]


class RepeatLayers(Strict):
    """Depth up-scaling: a copy of each layer after it, which at first passes on what it gets."""

    type: Literal["repeat_layers"]
    layers: Layers


class RemoveLayers(Strict):
    type: Literal["remove_layers"]
    layers: Layers


class WidenMlp(Strict):
    """Neurons are copied and share their outgoing weight (Net2Net, arXiv 1511.05641): the function stays."""

    type: Literal["widen_mlp"]
    width: int = Field(ge=1, le=65_536)


class ExtendVocabulary(Strict):
    """New tokens begin as the mean of the pieces that spelled them so far."""

    type: Literal["extend_vocabulary"]
    tokens: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(min_length=1, max_length=1000)]


Change = Annotated[RepeatLayers | RemoveLayers | WidenMlp | ExtendVocabulary, Field(discriminator="type")]
CHANGES: TypeAdapter[list[Change]] = TypeAdapter(list[Change])


@dataclass(frozen=True)
class Method:
    """As a job keeps it. `changes` are made to the model before training, in this order."""

    type: str = "supervised"
    settings: AnySettings = field(default_factory=Supervised)
    changes: tuple[Change, ...] = ()

    def as_json(self) -> dict[str, Any]:
        changes = [change.model_dump() for change in self.changes]
        return {"type": self.type, "settings": self.settings.model_dump(), "model_changes": changes}

    @property
    def makes_base(self) -> bool:
        """The result has weights of its own instead of an adapter."""
        return self.settings.adapter == NONE


def method_of(stored: Mapping[str, Any]) -> Method:
    """From a job's row."""
    settings = SETTINGS[stored["type"]].model_validate(stored.get("settings", {}))
    return Method(stored["type"], settings, tuple(CHANGES.validate_python(stored.get("model_changes", []))))


def check_method(type: str, given: Mapping[str, Any], changes: list[Any] | None) -> Method:
    """Raises InvalidHyperparameter naming the field; InvalidValue for changes that cannot be."""
    where = f"method.{type}.hyperparameters"
    if changes and "adapter" not in given and type in ("supervised", "unlikelihood", "continued_pretraining"):
        given = {**given, "adapter": NONE}
    try:
        settings = SETTINGS[type].model_validate(dict(given))
    except ValidationError as error:
        raise refusal(error, where) from error
    if isinstance(settings, Pretraining) and settings.width % (2 * settings.heads):
        raise InvalidHyperparameter("width must be an even multiple of heads.", param=f"{where}.width")
    if changes and (type == "pretraining" or settings.adapter != NONE):
        raise InvalidValue("A model that is changed is trained whole: adapter 'none'.", param=f"method.{type}")
    try:
        return Method(type, settings, tuple(CHANGES.validate_python(changes or [])))
    except ValidationError as error:
        where = f"method.{type}.model_changes"
        raise InvalidValue(refusal(error, where).message, param=where) from error


def refusal(error: ValidationError, where: str) -> InvalidHyperparameter:
    first = error.errors(include_url=False, include_input=False)[0]
    name = ".".join(str(each) for each in first["loc"][:1])[:80]
    if first["type"] == "extra_forbidden":
        return InvalidHyperparameter(f"Unknown hyperparameter '{name}'.", param=f"{where}.{name}")
    return InvalidHyperparameter(f"{name}: {first['msg']}.", param=f"{where}.{name}")


def wrong_rows(type: str, report: Mapping[str, Any]) -> str | None:
    """Why a file with this report does not suit the method; None when it does."""
    kind = report.get("kind")
    if kind is not None and kind not in KINDS[type]:
        wanted = " or ".join(f"'{each}'" for each in sorted(KINDS[type]))
        return f"The method '{type}' takes rows of kind {wanted}; this file has rows of kind '{kind}'."
    if report.get("unwanted") and type != "unlikelihood":
        return f"This file marks rows as unwanted, which the method '{type}' would teach; use 'unlikelihood'."
    return None


def peak_rate(method: Method) -> float:
    """The learning rate that a multiplier of 1 climbs to."""
    if method.type == "pretraining":
        return PRETRAINING_RATE
    return FULL_RATE if method.makes_base else LORA_RATES[method.type]


def block_tokens(method: Method, context_length: int) -> int | None:
    """How long the rows that texts are cut into become; None where rows stay as they are."""
    if isinstance(method.settings, Pretraining):
        return method.settings.context
    return method.settings.block(context_length) if isinstance(method.settings, ContinuedPretraining) else None


def training_rows(method: Method, report: Mapping[str, Any], context_length: int | None) -> int:
    """What batches are made of: the file's rows, or the blocks that its texts fill."""
    block = block_tokens(method, context_length or MOST_BLOCK)
    return math.ceil(report["tokens"] / block) if block else int(report["rows"])
