"""POST /v1/chat/completions and /v1/completions. No request transaction here: it would outlive the answer."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.dependencies import identify
from app.error_responses import envelope
from app.errors import AppError
from app.ids import new_id
from app.inference.admission import Admitted, Ticket, admit_chat, admit_completion
from app.inference.answers import ChatShape, Collected, Json, Shape, TextShape
from app.inference.relay import Relay, Subscription
from app.inference.schemas import ChatRequest, CompletionRequest, Sampling
from app.inference.wire_events import TokenEvent

router = APIRouter(prefix="/v1", tags=["inference"])

STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
Admit = Callable[[Ticket], Admitted]


@router.post("/chat/completions")
async def create_chat_completion(request: Request, body: ChatRequest) -> Response:
    """Streams server-sent events when `stream` is true."""
    asks = partial(identify, request=request)
    return await answer(request, body, "chatcmpl", lambda ticket: admit_chat(asks, ticket, body), ChatShape)


@router.post("/completions")
async def create_completion(request: Request, body: CompletionRequest) -> Response:
    asks = partial(identify, request=request)
    return await answer(request, body, "cmpl", lambda ticket: admit_completion(asks, ticket, body), TextShape)


async def answer(
    request: Request, body: Sampling, prefix: str, admit: Admit, shape_of: Callable[[Admitted, bool], Shape]
) -> Response:
    """Admit in a thread, then relay. An early failure keeps its status: headers leave after the first event."""
    relay: Relay = request.app.state.relay
    subscription = relay.subscribe(new_id(prefix), streamed=bool(body.stream))
    try:
        admitted = await to_thread.run_sync(admit, Ticket(subscription.generation_id, relay.replica))
    except BaseException:
        relay.forget(subscription)
        raise
    shape = shape_of(admitted, body.wants_usage)
    if not body.stream:
        return JSONResponse(shape.whole(await collect(request, relay, subscription, admitted)))
    chunks = sse(request, relay, subscription, admitted, shape)
    return EventStream(await anext(chunks), chunks)


async def collect(request: Request, relay: Relay, subscription: Subscription, admitted: Admitted) -> Collected:
    """The whole answer."""
    collected = Collected({})
    async with listening(request, relay, subscription):
        async for event in relay.events(subscription, admitted.task):
            collected.take(event)
    return collected


async def sse(
    request: Request, relay: Relay, subscription: Subscription, admitted: Admitted, shape: Shape
) -> AsyncGenerator[bytes]:
    """Server-sent events, one item per token event. A failure before the first raises; a later one ends them with an
    error object and no `[DONE]`.
    """
    opened: set[int] = set()
    begun = False
    async with listening(request, relay, subscription):
        try:
            async for event in relay.events(subscription, admitted.task):
                told = tell(shape, event, opened)
                if told or not begun:  # the first event begins the answer, even if there is nothing to read in it
                    begun = True
                    yield told
        except AppError as error:
            if not begun:
                raise
            yield data(envelope(error))


def tell(shape: Shape, event: TokenEvent, opened: set[int]) -> bytes:
    """What a client reads of one event. `opened`: the choices that have begun."""
    chunks: list[Json | None] = []
    if event.i not in opened and (event.text or event.ids or event.plp or event.finish):
        opened.add(event.i)
        chunks.append(shape.opening(event.i))
    chunks.append(shape.piece(event))
    if event.done is not None:
        chunks.append(shape.closing(event.done))
    told = b"".join(data(chunk) for chunk in chunks if chunk is not None)
    return told if event.done is None else told + b"data: [DONE]\n\n"


def data(chunk: Json) -> bytes:
    return b"data: %b\n\n" % to_json(chunk)


@asynccontextmanager
async def listening(request: Request, relay: Relay, subscription: Subscription) -> AsyncIterator[None]:
    """The call while its client listens: one that leaves ends it, and its end tells the worker if it still works."""
    leaving = asyncio.create_task(leave(request, subscription))
    try:
        yield
    finally:
        leaving.cancel()
        # Shielded: this may run while the request's own task is being cancelled.
        await asyncio.shield(relay.close(subscription))


async def leave(request: Request, subscription: Subscription) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    subscription.leave()


class EventStream(StreamingResponse):
    """Starlette's own asks a task group, at a price for each call, to look for a client that leaves; the subscription
    hears of it here. `first` was awaited before there were headers.
    """

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        super().__init__(chain(first, rest), media_type="text/event-stream", headers=STREAM_HEADERS)
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.stream_response(send)
        finally:
            await self._rest.aclose()  # where sending was cancelled, the worker is told now, not by the collector


async def chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """`first`, then the rest."""
    yield first
    async for each in rest:
        yield each
