"""What a client reads of a call, and what its leaving does. This test plays the worker on the real Valkey."""

import asyncio
import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from httpx2 import Response
from starlette.testclient import TestClient
from starlette.types import Message

from app.billing.metering import release_call
from app.database import transaction
from app.inference.wire_events import (
    CANCELLATIONS,
    EVENTS_FIELD,
    Done,
    Events,
    GenerateTask,
    TokenEvent,
    WireError,
    token_stream,
)
from app.main import create_app
from app.settings import get_settings
from app.tasks import TaskName, generation_queue
from tests.conftest import Base, Signed

DONE = Done(prompt_tokens=3, cached_tokens=1, completion_tokens=2)
BROKEN = WireError(code="overloaded", message="Too many adapters are in use; try again.")
SignUp = Callable[..., Signed]


def token(text: str, **more: Any) -> dict[str, Any]:
    return {"text": text, "ids": [7], **more}


class Worker:
    """Answers the next call of one base with the events it was given."""

    def __init__(self, base_id: str) -> None:
        self.valkey = redis.Redis.from_url(get_settings().redis_url)
        self._queue = generation_queue(base_id)

    def next_task(self) -> GenerateTask:
        while True:
            popped = self.valkey.blpop([self._queue], 20)
            assert popped is not None, "no call came"
            message = json.loads(popped[1])
            if message["headers"]["task"] == TaskName.GENERATE.value:
                _, arguments, _ = json.loads(base64.b64decode(message["body"]))
                return GenerateTask.model_validate(arguments["task"])

    def say(self, task: GenerateTask, event: dict[str, Any]) -> None:
        told = TokenEvent(g=task.generation_id, a=task.attempt, **event)
        self.valkey.xadd(token_stream(task.replica), {EVENTS_FIELD: Events.dump_json([told])})

    def release(self, task: GenerateTask) -> None:
        """This worker settles nothing, so the hold would stay."""
        with transaction() as tx:
            assert release_call(tx, task.generation_id, task.attempt)

    def answer(self, events: list[dict[str, Any]]) -> None:
        task = self.next_task()
        for event in events:
            self.say(task, event)
        self.release(task)


def ask(base: Base, caller: Signed, events: list[dict[str, Any]], path: str, **body: Any) -> Response:
    worker = Worker(base.id)
    try:
        with TestClient(create_app(), headers=caller.headers) as client, ThreadPoolExecutor(1) as pool:
            answering = pool.submit(worker.answer, events)
            answer = client.post(path, json={"model": base.id, **body})
            answering.result(30)
        return answer
    finally:
        worker.valkey.close()


def chat(base: Base, caller: Signed, events: list[dict[str, Any]], **body: Any) -> Response:
    return ask(base, caller, events, "/v1/chat/completions", messages=[{"role": "user", "content": "Hi"}], **body)


def read(answer: Response) -> list[Any]:
    """The data of each server-sent event, parsed but for the last mark."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_stream_has_its_role_its_tokens_its_counts_and_its_end(base: Base, signed_up: SignUp) -> None:
    events = [token("Hel"), token("lo", finish="stop"), {"done": DONE}]
    answer = chat(base, signed_up(), events, stream=True, stream_options={"include_usage": True})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    *chunks, counts, end = read(answer)
    assert end == "[DONE]"
    assert counts["choices"] == []
    assert counts["usage"]["total_tokens"] == 5
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hello"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_token_keeps_its_status(base: Base, signed_up: SignUp, stream: bool) -> None:
    answer = chat(base, signed_up(), [{"error": BROKEN}], stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"] == "2"


@pytest.mark.parametrize("first", ["Hel", ""])
def test_a_failure_after_the_first_token_ends_the_stream_without_the_mark(
    base: Base, signed_up: SignUp, first: str
) -> None:
    """Also where nothing of the first token may be told yet: it is paid for, so nobody should be told to try again."""
    events = [token(first), {"error": BROKEN}]
    answer = ask(base, signed_up(), events, "/v1/completions", prompt="Hi", stream=True)
    assert answer.status_code == 200
    *chunks, last = read(answer)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == first
    assert last["error"]["code"] == "overloaded"


@pytest.mark.parametrize("how", ["before the first token", "amid the answer", "without reading on"])
def test_a_client_that_leaves_stops_the_worker(base: Base, signed_up: SignUp, how: str) -> None:
    """Who reads no further is cut off by the server, as at its shutdown: the request is cancelled while it sends."""
    caller, worker = signed_up(), Worker(base.id)
    body = json.dumps({"model": base.id, "prompt": "Hi", "stream": True}).encode()
    headers = {"host": "testserver", "content-type": "application/json", "content-length": str(len(body))}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in (headers | caller.headers).items()],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
    }

    async def call() -> GenerateTask:
        app, asked = create_app(), list[bool]()
        leaving, sending = asyncio.Event(), asyncio.Event()

        async def receive() -> Message:
            if not asked:
                asked.append(True)
                return {"type": "http.request", "body": body, "more_body": False}
            await leaving.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] != "http.response.body" or not message["body"]:
                return
            sending.set()
            if how == "without reading on":
                await asyncio.Event().wait()

        async with app.router.lifespan_context(app):
            answering = asyncio.create_task(app(scope, receive, send))
            task = await asyncio.to_thread(worker.next_task)
            if how != "before the first token":
                worker.say(task, token("Hel"))
                await asyncio.wait_for(sending.wait(), 20)
            if how == "without reading on":
                answering.cancel()
            else:
                leaving.set()
            await asyncio.wait([answering], timeout=20)
            told = str(await asyncio.to_thread(worker.valkey.xrevrange, CANCELLATIONS, count=1))
        assert task.generation_id in told
        return task

    try:
        worker.release(asyncio.run(call()))
    finally:
        worker.valkey.close()
