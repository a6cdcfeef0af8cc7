"""POST /v1/chat/completions and /v1/completions. No request transaction here: it would outlive the answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic_core import to_json
from starlette.responses import Response

from app.dependencies import identify
from app.error_responses import envelope
from app.errors import AppError, GenerationFailed
from app.ids import new_id
from app.inference.admission import Admitted, Ticket, admit_chat, admit_completion
from app.inference.answers import ChatShape, Collected, Shape, TextShape
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
    request: Request, body: Sampling, prefix: str, admit: Admit, shape_of: Callable[[Admitted], Shape]
) -> Response:
    """Admit in a thread, then relay. An early failure keeps its status: headers leave after the first event."""
    relay: Relay = request.app.state.relay
    subscription = relay.subscribe(new_id(prefix), streamed=bool(body.stream))
    try:
        admitted = await to_thread.run_sync(admit, Ticket(subscription.generation_id, relay.replica))
    except BaseException:
        relay.forget(subscription)
        raise
    shape = shape_of(admitted)
    if not body.stream:
        return JSONResponse(shape.whole(await collect(request, relay, subscription, admitted)))
    events = relay.events(subscription, admitted.task)
    try:
        first = await first_event(request, events)
    except BaseException:
        await relay.close(subscription)
        raise
    chunks = sse(relay, subscription, first, events, shape, body.wants_usage)
    return StreamingResponse(chunks, media_type="text/event-stream", headers=STREAM_HEADERS)


async def collect(request: Request, relay: Relay, subscription: Subscription, admitted: Admitted) -> Collected:
    """The whole answer; a client that leaves meanwhile cancels it."""
    collected = Collected({})

    async def take_all() -> None:
        async for event in relay.events(subscription, admitted.task):
            collected.take(event)

    try:
        await unless_disconnected(request, take_all())
    finally:
        await relay.close(subscription)
    return collected


async def first_event(request: Request, events: AsyncIterator[TokenEvent]) -> TokenEvent:
    found: list[TokenEvent] = []

    async def take_one() -> None:
        found.append(await anext(events))

    await unless_disconnected(request, take_one())
    return found[0]


async def unless_disconnected(request: Request, work: Coroutine[object, None, None]) -> None:
    """Run `work`; when the client goes away first, stop it and raise (nobody reads that answer)."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise GenerationFailed("The client went away.")
        working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def sse(
    relay: Relay,
    subscription: Subscription,
    first: TokenEvent,
    rest: AsyncIterator[TokenEvent],
    shape: Shape,
    wants_usage: bool,
) -> AsyncIterator[bytes]:
    """Server-sent events; a failure ends them with an error object and no `[DONE]`."""
    opened: set[int] = set()
    tail = {"usage": None} if wants_usage else {}
    event = first
    try:
        while True:
            if event.i not in opened and (event.text or event.ids or event.plp or event.finish):
                opened.add(event.i)
                if (opening := shape.opening(event.i)) is not None:
                    yield data(opening | tail)
            if (piece := shape.piece(event)) is not None:
                yield data(piece | tail)
            if event.done is not None:
                break
            event = await anext(rest)
        if wants_usage:
            yield data(shape.usage_chunk(event.done))
        yield b"data: [DONE]\n\n"
    except AppError as error:
        yield data(envelope(error))
    finally:
        # Shielded: this runs while a disconnected client's task is being cancelled.
        await asyncio.shield(relay.close(subscription))


def data(chunk: object) -> bytes:
    return b"data: %b\n\n" % to_json(chunk)
