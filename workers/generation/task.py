"""The body of `generation.generate`: wait on the engine, settle, then say done. Never touches torch.

A client that saw the end finds its money settled: Postgres first, then the stream's last event.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from app.billing.metering import Ending
from app.inference.wire_events import Done, GenerateTask, TokenEvent, TokenLogprob, TopLogprob, WireError
from models_registry.store import ArtifactStore
from workers.generation.calls import Call, OpenCalls
from workers.generation.engine import request as engine_request
from workers.generation.engine.grammar import GrammarFailed, InvalidGrammar
from workers.generation.engine.protocol import AdapterNotLoaded, Engine, OnEvent, RequestTooLong
from workers.generation.engine.request import EngineRequest, Handle, StepEvent
from workers.generation.settlement import Settler
from workers.generation.token_stream import TokenStream

log = structlog.get_logger(__name__)


class Refused(Exception):
    """The call cannot be carried out; `code` and the message reach the client."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class GenerationWorker:
    """What a task needs of its process. `text_of`: one token id as text, for logprobs."""

    engine: Engine
    store: ArtifactStore
    stream: TokenStream
    calls: OpenCalls
    settler: Settler
    base_digest: str
    text_of: Callable[[int], str]


def generate(worker: GenerationWorker, task: GenerateTask) -> None:
    """One attempt, from message to settlement. A second delivery of the same attempt does nothing."""
    call = worker.calls.open(task)
    if call is None:
        return
    try:
        error = _produce(worker, call)
        worker.stream.flush()
        counts = _settle(worker.settler, call)
        worker.stream.add(call.delivery, _last_event(call, counts, error))
        worker.stream.end_step()
    finally:
        worker.calls.close(call)


def _produce(worker: GenerationWorker, call: Call) -> Refused | None:
    """Run it to its end; an expected or unexpected failure becomes the stream's error."""
    try:
        if call.cancelled:
            return None
        _check_deadline(call.task)
        handle = _submit(worker, call)
        if not handle.wait(call.task.deadline - time.time()) and not handle.started:
            worker.engine.cancel(handle)
            handle.wait()
            _check_deadline(call.task)
        handle.wait()
        if handle.error is not None:
            raise handle.error
    except Refused as error:
        return error
    except GrammarFailed as error:
        return Refused("invalid_schema", f"The schema is too complex to follow: {error}")
    except Exception:
        log.exception("generation_failed", generation_id=call.task.generation_id)
        return Refused("generation_failed", "The model failed while answering.")
    return None


def _submit(worker: GenerationWorker, call: Call) -> Handle:
    """Load the adapter on first use, in this thread; again if it was evicted in between."""
    task = call.task
    if task.base_digest != worker.base_digest:
        raise Refused("unavailable", "The base model was replaced; try again.")
    request = EngineRequest(tuple(task.token_ids), task.params, task.adapter_digest, task.tenant)
    for _ in range(3):
        if task.adapter_digest is not None:
            worker.engine.load_adapter(task.adapter_digest, worker.store.folder(task.adapter_digest))
        try:
            handle = worker.engine.submit(request, _to_stream(worker, call))
        except AdapterNotLoaded:
            continue
        except RequestTooLong as error:
            raise Refused("context_length_exceeded", str(error)) from error
        except InvalidGrammar as error:
            raise Refused("invalid_schema", f"The schema cannot be followed: {error}") from error
        worker.calls.attach(call, handle)
        return handle
    raise Refused("overloaded", "Too many adapters are in use; try again.")


def _to_stream(worker: GenerationWorker, call: Call) -> OnEvent:
    task = call.task

    def publish(event: StepEvent) -> None:
        worker.stream.add(
            call.delivery,
            TokenEvent(
                g=task.generation_id,
                a=task.attempt,
                i=event.index,
                text=event.text,
                ids=list(event.ids),
                lp=[_logprob(each, worker.text_of) for each in event.logprobs] or None,
                plp=[_logprob(each, worker.text_of) for each in event.prompt_logprobs] or None,
                finish=event.finish,
            ),
        )

    return publish


def _logprob(logprob: engine_request.TokenLogprob, text_of: Callable[[int], str]) -> TokenLogprob:
    top = [TopLogprob(id=token, text=text_of(token), logprob=value) for token, value in logprob.top]
    return TokenLogprob(id=logprob.token, text=text_of(logprob.token), logprob=logprob.logprob, top=top)


def _check_deadline(task: GenerateTask) -> None:
    if time.time() > task.deadline:
        raise Refused("overloaded", "The queue was too long; try again.")


def _settle(settler: Settler, call: Call) -> Done:
    """Prompt + published tokens; a call that never began costs nothing. Returns what was settled."""
    task, handle = call.task, call.handle
    began = handle is not None and handle.started
    failed = handle is not None and handle.error is not None
    if not began or (failed and call.delivery.published == 0):
        settler.ask(task.tenant, Ending(task.generation_id, task.attempt)).result()
        return Done(prompt_tokens=0, cached_tokens=0, completion_tokens=0)
    counts = Done(
        prompt_tokens=len(task.token_ids),
        cached_tokens=handle.cached_tokens if handle else 0,
        completion_tokens=call.delivery.published,
    )
    ending = Ending(task.generation_id, task.attempt, counts.prompt_tokens, counts.completion_tokens)
    settler.ask(task.tenant, ending).result()
    return counts


def _last_event(call: Call, counts: Done, error: Refused | None) -> TokenEvent:
    task = call.task
    if error is not None:
        failure = WireError(code=error.code, message=str(error))
        return TokenEvent(g=task.generation_id, a=task.attempt, error=failure, done=counts)
    finish = "cancelled" if call.cancelled and call.handle is None else None
    return TokenEvent(g=task.generation_id, a=task.attempt, finish=finish, done=counts)
