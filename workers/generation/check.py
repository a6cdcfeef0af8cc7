"""The effect check before a version is published: does this variant do anything, and does it do it soundly?

On the listing's examples: the variant's first logits differ from the base's; streamed text equals the plain text;
what training would have rendered begins with what serving renders.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from app.catalog.check import finish_check
from app.catalog.tables import ListingVersion
from app.database import transaction
from app.inference.wire_events import SamplingParams
from app.variants.tables import Variant
from models_registry.errors import RegistryError
from models_registry.prompt import Message, Renderer
from models_registry.store import ArtifactStore
from workers.generation.engine.protocol import AdapterNotLoaded, Engine
from workers.generation.engine.request import EngineRequest, StepEvent, TokenLogprob

log = structlog.get_logger(__name__)

MAX_EXAMPLES = 4
CHECKED_TOKENS = 16
DEFAULT_QUESTION = "Hello! What can you help me with?"
# Log-probabilities of a different model differ far more than rounding in bf16 does within one batch shape.
LEAST_DIFFERENCE = 1e-3


def check_version(engine: Engine, store: ArtifactStore, renderer: Renderer, version_id: str) -> None:
    """Decide `published` or `rejected`; a second delivery changes nothing."""
    with transaction() as tx:
        version = tx.get(ListingVersion, version_id)
        if version is None or version.status != "checking":
            return
        variant = tx.get_one(Variant, version.variant_id)
        digest, questions, system = variant.adapter_digest, questions_of(version), version.system_prompt
    try:
        if digest is not None:
            engine.load_adapter(digest, store.folder(digest))
        reasons = defects(engine, renderer, digest, [turns(question, system) for question in questions])
    except (RegistryError, ValueError, AdapterNotLoaded) as error:
        reasons = [f"the adapter cannot be loaded: {error}"]
    with transaction() as tx:
        finish_check(tx, version_id, reasons)
    log.info("version_checked", version_id=version_id, reasons=reasons)


def questions_of(version: ListingVersion) -> list[str]:
    """The listing's own examples, else its starters, else a greeting."""
    examples = [text for example in version.examples if (text := question_in(example))]
    starters = [starter for starter in version.starters if isinstance(starter, str) and starter]
    return (examples or starters or [DEFAULT_QUESTION])[:MAX_EXAMPLES]


def question_in(example: object) -> str:
    """An example is a text, or an object whose `input` is the question."""
    if isinstance(example, Mapping):
        return str(example.get("input") or "")
    return example if isinstance(example, str) else ""


def turns(question: str, system: str | None) -> list[Message]:
    return [*([Message("system", system)] if system else []), Message("user", question)]


def defects(engine: Engine, renderer: Renderer, digest: str | None, talks: Sequence[list[Message]]) -> list[str]:
    """Reasons to reject; none is good. The order of the talks does not matter. `digest` None: weights of its own."""
    reasons = []
    prompts = [renderer.chat(talk) for talk in talks]
    answers = [Reply(engine, prompt, digest) for prompt in prompts]
    bases = [Reply(engine, prompt, None) for prompt in prompts] if digest else []
    for reply in (*answers, *bases):
        reply.wait()
    if digest and not any(differ(own.first, base.first) for own, base in zip(answers, bases, strict=True)):
        reasons.append("on its examples it answers exactly as the base model does")
    for talk, prompt, reply in zip(talks, prompts, answers, strict=True):
        if renderer.training([*talk, Message("assistant", "x")]).ids[: len(prompt)] != prompt:
            reasons.append("training and serving render the same conversation differently")
        if reply.text != renderer.decode(reply.ids):
            reasons.append("the streamed text differs from the whole text")
    return reasons


class Reply:
    """A greedy answer under way, with the log-probabilities of its first token."""

    def __init__(self, engine: Engine, prompt: Sequence[int], adapter: str | None) -> None:
        self.text, self.ids = "", list[int]()
        self.first: TokenLogprob | None = None
        params = SamplingParams(max_tokens=CHECKED_TOKENS, temperature=0.0, logprobs=20)
        self._handle = engine.submit(EngineRequest(tuple(prompt), params, adapter), self._hear)

    def _hear(self, event: StepEvent) -> None:
        self.text += event.text
        self.ids += event.ids
        if self.first is None and event.logprobs:
            self.first = event.logprobs[0]

    def wait(self) -> None:
        self._handle.wait()
        if self._handle.error is not None:
            raise self._handle.error


def differ(own: TokenLogprob | None, base: TokenLogprob | None) -> bool:
    """Other likeliest tokens, or the same with other probabilities."""
    if own is None or base is None:
        return False
    first: Mapping[int, Any] = dict(own.top)
    second: Mapping[int, Any] = dict(base.top)
    if set(first) != set(second):
        return True
    return any(abs(first[token] - second[token]) > LEAST_DIFFERENCE for token in first)
