"""A request, its `n` sequences and what they tell the caller. No tensor in sight."""

import secrets
import threading
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Literal

from app.inference.wire_events import SamplingParams
from workers.generation.engine.grammar import Grammar, GrammarFailed
from workers.generation.engine.kv_cache import Key
from workers.generation.engine.lookup import Lookup
from workers.generation.engine.reply_text import Detokenizer, ReplyText

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class EngineRequest:
    """`token_ids`: the rendered prompt. `adapter`: digest of a resident adapter, None for the base.

    `tenant`: whose request it is; tenants take turns, and none sees what another's prompts left in the cache.
    """

    token_ids: tuple[int, ...]
    params: SamplingParams
    adapter: str | None = None
    tenant: str = ""


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probabilities under the model's own distribution, before temperature and filters."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class StepEvent:
    """What one sequence gained in one step. `text` may lag behind `ids` (split characters, stops).

    `prompt_logprobs`: of the prompt's next tokens, from its second on.
    """

    index: int
    ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None


def joined(events: Seq[StepEvent]) -> StepEvent:
    """One sequence's news of one step, in order."""
    if len(events) == 1:
        return events[0]
    return StepEvent(
        events[0].index,
        tuple(token for event in events for token in event.ids),
        "".join(event.text for event in events),
        tuple(logprob for event in events for logprob in event.logprobs),
        finish=events[-1].finish,
    )


class Handle:
    """The caller's grip on a request: wait for its end, then read how it went."""

    def __init__(
        self, request: EngineRequest, on_event: Callable[[StepEvent], None], grammar: Grammar | None = None
    ) -> None:
        self.request = request
        self.on_event = on_event
        self.grammar = grammar
        self.seed = secrets.randbits(63) if request.params.seed is None else request.params.seed
        self.cancelled = False
        self.started = False
        self.error: Exception | None = None
        self.cached_tokens = 0
        self.open_sequences = request.params.n
        self._finished = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        """True once the last sequence ended (or the engine failed: then `error` says why)."""
        return self._finished.wait(timeout)

    def finish_one(self) -> None:
        self.open_sequences -= 1
        if self.open_sequences == 0:
            self._finished.set()

    def fail(self, error: Exception) -> None:
        self.error = error
        self._finished.set()


@dataclass(eq=False)
class Sequence:
    """One choice of a request. `tokens` = prompt + produced; the first `computed` of them are in the cache."""

    handle: Handle
    index: int
    detokenizer: Detokenizer
    eos_ids: frozenset[int]
    context_length: int
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    scored: int = 1  # prompt tokens whose log-probability was told; the first has none
    finish: Finish | None = None

    def __post_init__(self) -> None:
        self.request = self.handle.request
        self.params = self.request.params
        self.adapter = self.request.adapter
        self.tokens = list(self.request.token_ids)
        self.prompt_length = len(self.tokens)
        self.longest = min(self.prompt_length + self.params.max_tokens, self.context_length)
        self.lookup = Lookup()
        self.text = ReplyText(self.detokenizer, self.params.stop)
        self.last_key: Key = blake2b(f"{self.request.tenant}\0{self.adapter or ''}".encode(), digest_size=16).digest()
        self.salt, self.keyed = self.last_key, 0  # blocks whose content the cache knows, and the key of the last
        self.matcher = None if self.handle.grammar is None else self.handle.grammar.matcher()

    @cached_property
    def is_adjusted(self) -> bool:
        """Its logits are changed before they are a distribution."""
        p = self.params
        return bool(p.logit_bias or p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1)

    @cached_property
    def is_plain(self) -> bool:
        """Nothing but a temperature shapes its distribution, and nobody asks for probabilities."""
        p = self.params
        filtered = p.top_p < 1 or p.top_k > 0 or p.min_p > 0
        return not (filtered or self.is_adjusted or p.logprobs is not None or self.matcher is not None)

    @cached_property
    def is_guessable(self) -> bool:
        """Its next token is a matter of the logits and of where it stands, not of those sampled just before."""
        return not (self.is_adjusted or self.matcher is not None or self.params.prompt_logprobs is not None)

    @property
    def pending(self) -> int:
        """Tokens not yet in the cache: 1 while decoding, more while prefilling."""
        return len(self.tokens) - self.computed

    @property
    def produced(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def scores_prompt(self) -> bool:
        """Every prompt position must be computed, for its logits are wanted; a cached prefix would have none."""
        return self.params.prompt_logprobs is not None and self.scored < self.prompt_length

    def append(self, token: int, logprob: TokenLogprob | None) -> StepEvent:
        """Take the sampled token and decide whether the reply ends with it."""
        if self.params.max_tokens == 0:
            self.finish = "length"
            return StepEvent(self.index, finish="length")
        if self.matcher is not None and not self.matcher.advance(token):
            return self.fail(GrammarFailed(self.matcher.error))
        self.tokens.append(token)
        text = ""
        if token in self.eos_ids and not self.params.ignore_eos:
            self.finish = "stop"
        else:
            text = self.text.push(token)
            if self.text.stopped or (self.matcher is not None and self.matcher.complete):
                self.finish = "stop"
            elif len(self.tokens) >= self.longest:
                self.finish = "length"
        if self.finish is not None and not self.text.stopped:
            text += self.text.flush()
        logprobs = () if logprob is None else (logprob,)
        return StepEvent(self.index, (token,), text, logprobs, finish=self.finish)

    def fail(self, error: Exception) -> StepEvent:
        """End the whole request, its other sequences too, with that error."""
        self.handle.error, self.handle.cancelled = error, True
        return self.cancel()

    def cancel(self) -> StepEvent:
        self.finish = "cancelled"
        return StepEvent(self.index, text=self.text.flush(), finish="cancelled")
