"""Tokens from the workers to the clients of this API replica: one reader, many subscriptions.

The relay follows one attempt of a call. A worker that falls silent before the first token costs a second attempt;
after it, the stream ends with an error and the relay settles what it delivered.
"""

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncIterator
from enum import Enum, auto
from typing import cast

import structlog
from anyio import to_thread
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from app.errors import AppError, ContextLengthExceeded, GenerationFailed, InvalidSchema, Overloaded, Unavailable
from app.inference import recovery
from app.inference.wire_events import (
    ALIVE_FIELD,
    CANCELLATIONS,
    EVENTS_FIELD,
    STREAM_MAXLEN,
    Events,
    GenerateTask,
    StreamEntries,
    TokenEvent,
    WireError,
    token_stream,
)
from app.metrics import FIRST_TOKEN_SECONDS, GENERATIONS, INTER_TOKEN_SECONDS, TOKENS
from app.settings import get_settings
from app.tasks import generation_queue
from app.valkey import connect_async

log = structlog.get_logger(__name__)

READ_BLOCK_MS = 1_000
STREAM_LIFETIME = 3_600
TICK = 1.0
RENEW_PERIOD = 8.0
EXTEND_PERIOD = 60.0
ERRORS: dict[str, type[AppError]] = {
    "overloaded": Overloaded,
    "unavailable": Unavailable,
    "context_length_exceeded": ContextLengthExceeded,
    "invalid_schema": InvalidSchema,
}


class Sign(Enum):
    """What a subscription hears besides events."""

    TICK = auto()  # time to look for silence
    LEFT = auto()  # nobody reads the answer any more


class Subscription:
    """One call's events, in order. `produced` counts the tokens handed on; `outcome` is set once nobody works on it.

    `streamed`: the client hears tokens as they come. Otherwise nothing is delivered before the end.
    """

    def __init__(self, generation_id: str, streamed: bool) -> None:
        self.generation_id = generation_id
        self.streamed = streamed
        self.opened_at = time.monotonic()
        self.attempt = 1
        self.queue: asyncio.Queue[TokenEvent | Sign] = asyncio.Queue()
        self.heard_at = time.monotonic()
        self.accepted = False
        self.produced = 0
        self.token_at = 0.0
        self.outcome: str | None = None

    def hear(self, event: TokenEvent) -> None:
        """A new attempt may overtake the thread that asked for it: its first event makes it the present one."""
        if event.a >= self.attempt:
            self.attempt, self.heard_at, self.accepted = event.a, time.monotonic(), True
            self.queue.put_nowait(event)

    def leave(self) -> None:
        """The client went away."""
        self.queue.put_nowait(Sign.LEFT)

    def alive(self) -> None:
        self.heard_at, self.accepted = time.monotonic(), True

    @property
    def ended(self) -> bool:
        return self.outcome is not None

    def time_token(self) -> None:
        """For the metrics: how long the first token, or the next one, was waited for."""
        now = time.monotonic()
        if self.produced:
            INTER_TOKEN_SECONDS.observe(now - self.token_at)
        else:
            FIRST_TOKEN_SECONDS.observe(now - self.opened_at)
        self.token_at = now

    @property
    def silence(self) -> float:
        return time.monotonic() - self.heard_at


class Relay:
    """Of one API process; `start` and `stop` with its event loop."""

    def __init__(self) -> None:
        self.replica = secrets.token_hex(8)
        self._open: dict[str, Subscription] = {}
        self._valkey = connect_async(2 * READ_BLOCK_MS / 1_000)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False

    def start(self) -> None:
        self._tasks = [asyncio.create_task(beat) for beat in (self._read(), self._tick(), self._renew_leases())]

    async def stop(self) -> None:
        # redis-py may swallow the cancellation of a command, so the reader also looks at this flag.
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._valkey.delete(token_stream(self.replica))
        except RedisError as error:
            log.warning("stream_left_to_expire", error=str(error))
        await self._valkey.aclose()

    def subscribe(self, generation_id: str, streamed: bool) -> Subscription:
        """Before admission sends the task, or the first tokens could pass unheard."""
        subscription = self._open[generation_id] = Subscription(generation_id, streamed)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Admission refused: no worker knows of it."""
        self._open.pop(subscription.generation_id, None)

    async def close(self, subscription: Subscription) -> None:
        """Forget it; unless the worker ended it, tell the worker to stop."""
        generation_id = subscription.generation_id
        self._open.pop(generation_id, None)
        GENERATIONS.labels(subscription.outcome or "cancelled").inc()
        if subscription.ended:
            return
        try:
            await self._valkey.xadd(CANCELLATIONS, {"g": generation_id}, maxlen=STREAM_MAXLEN, approximate=True)
        except RedisError as error:
            log.warning("cancellation_not_sent", generation_id=generation_id, error=str(error))

    async def events(self, subscription: Subscription, task: GenerateTask) -> AsyncIterator[TokenEvent]:
        """Until the `done` event, which is the last one yielded. Raises what the worker or its silence means, and
        GenerationFailed once the client left.

        Events of a second attempt (`a` is larger) begin the answer anew; only a call that is not streamed sees both.
        """
        subscription.heard_at = time.monotonic()  # admission may have waited longer than a worker may be silent
        while not subscription.ended:
            event = await subscription.queue.get()
            if event is Sign.LEFT:
                raise GenerationFailed("The client went away.")
            if event is Sign.TICK:
                task = await self._check_silence(subscription, task)
                continue
            if event.error is not None:
                subscription.outcome = event.error.code
                raise refusal(event.error)
            if event.ids:
                subscription.time_token()
            TOKENS.inc(len(event.ids))
            subscription.produced += len(event.ids)
            subscription.outcome = None if event.done is None else "finished"
            yield event

    async def _check_silence(self, subscription: Subscription, task: GenerateTask) -> GenerateTask:
        """Decide what a silent worker means; see the module's head. Returns the attempt to follow."""
        patience = get_settings().generation.silence
        if subscription.silence < patience:
            return task
        if subscription.produced and subscription.streamed:
            subscription.outcome = "worker_lost"
            try:
                await to_thread.run_sync(recovery.settle_delivered, task, subscription.produced)
            except SQLAlchemyError as error:
                log.warning("delivery_not_settled", generation_id=task.generation_id, error=str(error))
            raise GenerationFailed("The worker stopped answering; you pay only for what you received.")
        if time.time() > task.deadline + patience:
            subscription.outcome = "worker_lost"
            await to_thread.run_sync(recovery.give_up, task)
            raise Overloaded("No worker took the request in time; try again.", retry_after=5)
        if task.attempt == 1 and (subscription.accepted or await self._message_is_lost(task)):
            task = await self._resubmit(subscription, task)
            subscription.attempt, subscription.produced = task.attempt, 0
            subscription.heard_at, subscription.accepted = time.monotonic(), False
        elif subscription.accepted:
            subscription.outcome = "worker_lost"
            await to_thread.run_sync(recovery.give_up, task)
            raise Unavailable("The workers stopped before answering; try again.", retry_after=5)
        return task

    async def _resubmit(self, subscription: Subscription, task: GenerateTask) -> GenerateTask:
        try:
            return await to_thread.run_sync(recovery.resubmit, task)
        except AppError:
            subscription.outcome = "worker_lost"
            raise

    async def _message_is_lost(self, task: GenerateTask) -> bool:
        """Nobody took it, yet the queue is empty: it went down with a worker or with Valkey.

        Where Valkey does not answer, sending it again tells whether there is a way to the workers.
        """
        try:
            return not await self._valkey.exists(generation_queue(task.base_id))
        except RedisError:
            return True

    async def _read(self) -> None:
        """The only reader of this replica's stream; a lost connection is tried again for ever."""
        stream, last, extended = token_stream(self.replica), "0-0", -math.inf
        while not self._stopped:
            try:
                found = cast(StreamEntries, await self._valkey.xread({stream: last}, block=READ_BLOCK_MS) or [])
                for _, entries in found:
                    for entry_id, fields in entries:
                        last = entry_id.decode()
                        self._dispatch(fields)
                if found and time.monotonic() > extended + EXTEND_PERIOD:
                    await self._valkey.expire(stream, STREAM_LIFETIME)
                    extended = time.monotonic()
            except RedisError as error:
                log.warning("token_stream_unreadable", error=str(error))
                await asyncio.sleep(TICK)

    def _dispatch(self, fields: dict[bytes, bytes]) -> None:
        if (body := fields.get(EVENTS_FIELD.encode())) is not None:
            for event in Events.validate_json(body):
                if (subscription := self._open.get(event.g)) is not None:
                    subscription.hear(event)
        if (body := fields.get(ALIVE_FIELD.encode())) is not None:
            for generation_id in json.loads(body):
                if (subscription := self._open.get(generation_id)) is not None:
                    subscription.alive()

    async def _tick(self) -> None:
        """One clock for all that wait: a timer for each token of each answer costs more than the token."""
        while True:
            await asyncio.sleep(TICK)
            for subscription in self._open.values():
                if subscription.queue.empty():
                    subscription.queue.put_nowait(Sign.TICK)

    async def _renew_leases(self) -> None:
        """While a client waits here, its call's hold stays; a call still queued has nobody else to keep it."""
        while True:
            await asyncio.sleep(RENEW_PERIOD)
            if ids := [each for each, subscription in self._open.items() if not subscription.ended]:
                try:
                    await to_thread.run_sync(recovery.renew, ids)
                except SQLAlchemyError as error:
                    log.warning("leases_not_renewed", count=len(ids), error=str(error))


def refusal(error: WireError) -> AppError:
    """The worker's reason, in the API's words."""
    family = ERRORS.get(error.code, GenerationFailed)
    return family(error.message, retry_after=2 if family in (Overloaded, Unavailable) else None)
