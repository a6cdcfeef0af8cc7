"""The way in: who asks, for what model, may they, can they pay, is there room. One transaction, then the message.

Runs in a thread; once it returns, the hold is committed and the task is on its way.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from app.accounts.authenticate import Caller
from app.billing.metering import affordable_tokens, open_call
from app.billing.tables import Generation
from app.database import transaction
from app.errors import ContextLengthExceeded, InvalidValue, Overloaded
from app.inference import recovery, rules
from app.inference.model_target import Target, resolve
from app.inference.schemas import ChatRequest, CompletionRequest, Sampling
from app.inference.structure import structure_of
from app.inference.wire_events import GenerateTask
from app.settings import get_settings
from app.tasks import TaskName, enqueue, generation_queue, unsent
from models_registry.errors import PromptError
from models_registry.prompt import Renderer
from models_registry.store import open_store

Identify = Callable[[Session], Caller]

# Who may call, and at what price, is read by a few at a time: they share one interpreter, and among forty at once each
# took twice the processor (docs/decisions/0025). None of them waits for a lock of the database or for Valkey.
READERS = threading.BoundedSemaphore(4)

UNDER_WAY = select(
    func.count().filter(Generation.base_id == bindparam("base_id")),
    func.count().filter(Generation.account_id == bindparam("account_id")),
).where(Generation.state == "held")


@dataclass(frozen=True)
class Ticket:
    """Where the answer is awaited: made before admission, so that no token passes unheard."""

    generation_id: str
    replica: str


@dataclass(frozen=True)
class Admitted:
    """A call with its hold in place.

    `prompt` is the text to echo and `first` its first token's, for completions that ask for it. `calls`: the answer
    may call tools.
    """

    task: GenerateTask
    model: str
    created: int
    prompt: str = ""
    first: str = ""
    calls: bool = False

    @property
    def fingerprint(self) -> str:
        """Names the weights that answer."""
        return f"fp_{(self.task.adapter_digest or self.task.base_digest)[:12]}"


def admit_chat(identify: Identify, ticket: Ticket, request: ChatRequest) -> Admitted:
    """Raises every refusal of THREATS' first paragraph: 400, 401, 403, 404, 429, 503; then nothing is held."""
    structure = structure_of(request)

    def prompt_of(target: Target, renderer: Renderer) -> list[int]:
        turns = rules.conversation(request.messages, target.system_prompt, structure.words)
        rules.check_bytes([turn.content for turn in turns], target.base.context_length or 0)
        try:
            return renderer.chat(turns)
        except PromptError as error:
            raise InvalidValue(str(error), param="messages") from error

    return replace(admit(identify, ticket, request, prompt_of, structure.grammar), calls=structure.calls)


def admit_completion(identify: Identify, ticket: Ticket, request: CompletionRequest) -> Admitted:
    """As `admit_chat`; the prompt is one text, or one list of token ids."""
    prompt = request.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if not prompt or (isinstance(prompt, list) and any(isinstance(part, str) for part in prompt)):
        raise InvalidValue("prompt must be one text or one list of token ids.", param="prompt")

    def prompt_of(target: Target, renderer: Renderer) -> list[int]:
        if isinstance(prompt, str):
            rules.check_bytes([prompt], target.base.context_length or 0)
            return renderer.encode(prompt)
        ids = [part for part in prompt if isinstance(part, int)]
        if any(not 0 <= token < renderer.vocabulary for token in ids):
            raise InvalidValue("prompt holds a token id outside the vocabulary.", param="prompt")
        return ids

    admitted = admit(identify, ticket, request, prompt_of)
    if not request.echo:
        return admitted
    ids, renderer = admitted.task.token_ids, load_renderer(admitted.task.base_digest)
    return replace(
        admitted,
        prompt=prompt if isinstance(prompt, str) else renderer.decode(ids),
        first=renderer.decode(ids[:1]),
    )


def admit(
    identify: Identify,
    ticket: Ticket,
    request: Sampling,
    prompt_of: Callable[[Target, Renderer], list[int]],
    grammar: str | None = None,
) -> Admitted:
    settings = get_settings().generation
    with transaction() as tx:
        with READERS:
            caller = identify(tx)
            caller.require("inference")
            target = resolve(tx, caller, request.model)
            base = target.base
            check_queue(tx, base.id, caller.account_id)
            renderer = load_renderer(base.digest or "")
            ids = prompt_of(target, renderer)
            params = rules.sampling_params(request, target.defaults, 1, renderer.vocabulary, grammar)
            bound = completion_bound(tx, caller, target, request, ids, params.n)
        params = params.model_copy(update={"max_tokens": bound})
        open_call(
            tx,
            generation_id=ticket.generation_id,
            account_id=caller.account_id,
            api_key_id=caller.api_key_id,
            has_budget=caller.has_budget,
            target=target.call,
            prompt_tokens=len(ids),
            max_completion_tokens=bound * params.n,
            lease_seconds=settings.lease,
        )
        task = GenerateTask(
            generation_id=ticket.generation_id,
            attempt=1,
            replica=ticket.replica,
            base_id=base.id,
            base_digest=base.digest or "",
            tenant=caller.account_id,
            adapter_digest=target.adapter_digest,
            token_ids=ids,
            params=params,
            deadline=time.time() + settings.queue_timeout,
        )
        enqueue(tx, TaskName.GENERATE, {"task": task.model_dump(mode="json")}, generation_queue(base.id))
    if unsent(tx):
        recovery.give_up(task)
        raise recovery.unreachable()
    return Admitted(task, request.model, int(time.time()))


def completion_bound(tx: Session, caller: Caller, target: Target, request: Sampling, ids: list[int], n: int) -> int:
    """Tokens each choice may have. An absent bound shrinks to what the wallet covers; a given one never does."""
    settings = get_settings().generation
    asked = rules.asked_tokens(request, target.defaults)
    explicit = rules.asked_tokens(request, {}) is not None
    if not ids:
        raise InvalidValue("The prompt is empty.", param="prompt")
    context = target.base.context_length or 0
    if len(ids) >= context:
        raise ContextLengthExceeded(
            f"This model's context is {context} tokens; the prompt has {len(ids)}.", param="messages"
        )
    bound = rules.answer_bound(asked, explicit, len(ids), context, settings.default_max_tokens)
    if explicit:
        return bound
    return max(min(bound, affordable_tokens(tx, caller.account_id, target.call, len(ids)) // n), 1)


def check_queue(tx: Session, base_id: str, account_id: str) -> None:
    """A full queue refuses at once, so that waiting stays short; one account can fill only its share."""
    settings = get_settings().generation
    everyone, own = tx.execute(UNDER_WAY, {"base_id": base_id, "account_id": account_id}).one()
    if everyone >= settings.max_queued:
        raise Overloaded("The model has too many requests waiting; try again.", retry_after=2)
    if own >= settings.max_queued_per_account:
        raise Overloaded("Your account has too many requests under way; try again.", retry_after=2)


def load_renderer(base_digest: str) -> Renderer:
    return Renderer.load(open_store(get_settings().artifacts_url).folder(base_digest))
