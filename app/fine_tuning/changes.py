"""Whether a model can be changed as asked: told when a job is created, checked again on the model itself. Pure."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from app.errors import InvalidValue
from app.fine_tuning.methods import Change, ExtendVocabulary, Method, RemoveLayers, RepeatLayers, WidenMlp
from app.fine_tuning.size import Size, sizes

MAX_LAYERS, MAX_WIDENING = 256, 4
Known = Callable[[Sequence[str]], Collection[str]]


def check_changes(method: Method, parameters: int, shape: Mapping[str, Any], known: Known) -> None:
    """`known` names those of some tokens that the base has. Raises InvalidValue."""
    added: set[str] = set()
    for size, change in zip(sizes(method, parameters, shape), method.changes, strict=False):
        trouble = trouble_of(size, change)
        if isinstance(change, ExtendVocabulary):
            trouble = trouble_adding(change.tokens, added.union(known(change.tokens)))
            added.update(change.tokens)
        if trouble:
            where = f"method.{method.type}.model_changes"
            raise InvalidValue(f"The model cannot be changed like this: {trouble}.", param=where)


def trouble_of(size: Size, change: Change) -> str | None:
    """Why a model of this size cannot be changed so."""
    match change:
        case RepeatLayers():
            return trouble_repeating(size.layers, change.layers)
        case RemoveLayers():
            return trouble_removing(size.layers, change.layers)
        case WidenMlp():
            return trouble_widening(size.inner, change.width)
    return None


def trouble_repeating(layers: int, numbers: Sequence[int]) -> str | None:
    if layers + len(numbers) > MAX_LAYERS:
        return f"the model would have more than {MAX_LAYERS} layers"
    return trouble_finding(layers, numbers)


def trouble_removing(layers: int, numbers: Sequence[int]) -> str | None:
    return trouble_finding(layers, numbers) or ("no layer would be left" if len(set(numbers)) == layers else None)


def trouble_finding(layers: int, numbers: Sequence[int]) -> str | None:
    if max(numbers) < layers:
        return None
    return f"layer {max(numbers)} does not exist: the model has layers 0 to {layers - 1}"


def trouble_widening(old: int, width: int) -> str | None:
    """`old` 0: its MLP is none that can be widened."""
    if not old:
        return "its kind of MLP cannot be widened"
    if not old < width:
        return f"the MLP is {old} wide already"
    return (
        f"the MLP would be more than {MAX_WIDENING} times as wide as its {old}" if width > MAX_WIDENING * old else None
    )


def trouble_adding(tokens: Sequence[str], known: Collection[str]) -> str | None:
    twice = [token for number, token in enumerate(tokens) if token in known or token in tokens[:number]]
    return f"the token {twice[0]!r} is there already" if twice else None
