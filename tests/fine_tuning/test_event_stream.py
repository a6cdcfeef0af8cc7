"""Events as they happen: each once and in order, from where the reader left, until the job has ended."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.database import transaction
from app.errors import RateLimited
from app.fine_tuning.bell import MOST_STREAMS_PER_ACCOUNT, Bell
from app.fine_tuning.event_stream import stream_events
from app.fine_tuning.events import Event, add_events
from app.fine_tuning.find import find_job
from app.fine_tuning.finish import cancel
from tests.conftest import Base, Services, Signed
from tests.fine_tuning.conftest import chat_rows
from tests.fine_tuning.runs import new_job, post

SignUp = Callable[..., Signed]


def told(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def test_an_ended_job_tells_all_its_events_and_a_reader_who_comes_back_the_rest(
    client: TestClient, signed_up: SignUp, base: Base
) -> None:
    user = signed_up()
    job = new_job(client, user, base.id, chat_rows(1))
    post(client, user, job, "pause")
    post(client, user, job, "cancel")
    path = f"/v1/fine_tuning/jobs/{job}/events"
    listed = client.get(path, headers=user.headers).json()["data"]
    whole = client.get(path, params={"stream": "true"}, headers=user.headers)
    assert whole.headers["content-type"].startswith("text/event-stream")
    assert whole.text.endswith("data: [DONE]\n\n")
    events = told(whole.text)
    assert events == listed[::-1]
    assert f"id: {events[0]['id']}\n" in whole.text
    seen, streamed = events[1]["id"], {"stream": "true"}
    for headers, params in (({"last-event-id": seen}, {}), ({}, {"after": seen})):
        answer = client.get(path, headers=user.headers | headers, params=streamed | params)
        assert told(answer.text) == events[2:]
    forged = client.get(path, params={"stream": "true", "after": "ftevent-x"}, headers=user.headers)
    assert forged.json()["error"]["code"] == "invalid_cursor"


def test_a_reader_hears_what_is_committed_while_they_wait(client: TestClient, signed_up: SignUp, base: Base) -> None:
    user = signed_up()
    job_id = new_job(client, user, base.id, chat_rows(1))

    def say(message: str) -> None:
        with transaction() as tx:
            find_job(tx, user.account_id, job_id, lock=True)
            add_events(tx, job_id, [Event(message)])

    def end() -> None:
        with transaction() as tx:
            cancel(tx, user.account_id, job_id)

    async def read() -> list[str]:
        bell = Bell()
        frames = stream_events(bell, user.account_id, job_id, None)
        heard = [await message_of(frames) for _ in range(2)]
        for message in ("one", "two"):
            next_one = asyncio.create_task(message_of(frames))
            await asyncio.to_thread(say, message)
            heard.append(await asyncio.wait_for(next_one, 10))
        await asyncio.to_thread(end)
        heard += [each async for each in frames][-1:]
        await bell.stop()
        return heard

    heard = asyncio.run(read())
    assert heard[2:] == ["one", "two", "data: [DONE]\n\n"]


def test_one_account_has_its_share_of_streams_and_leaves_the_others_theirs(services: Services) -> None:
    async def crowd() -> None:
        bell = Bell()
        with ExitStack() as streams:
            for _ in range(MOST_STREAMS_PER_ACCOUNT):
                streams.enter_context(bell.ringing("ftjob-one", "acct-one"))
            with pytest.raises(RateLimited):
                bell.check_room("acct-one")
            bell.check_room("acct-two")
        bell.check_room("acct-one")
        await bell.stop()

    asyncio.run(crowd())


async def message_of(frames: AsyncIterator[str]) -> str:
    frame = await anext(frames)
    return str(told(frame)[0]["message"])
