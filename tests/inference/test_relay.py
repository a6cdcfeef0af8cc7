"""The relay when a worker falls silent. This test plays the worker on the real Valkey; the money is real Postgres."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis

from app.billing.tables import Generation
from app.errors import GenerationFailed
from app.inference.answers import Collected
from app.inference.relay import Relay, Subscription
from app.inference.wire_events import (
    CANCELLATIONS,
    EVENTS_FIELD,
    Done,
    Events,
    GenerateTask,
    SamplingParams,
    TokenEvent,
    token_stream,
)
from app.settings import get_settings
from app.tasks import TaskName, generation_queue
from tests.billing.calls import call_of, opened
from tests.conftest import Services
from tests.factories import new_account, new_listing

DONE = Done(prompt_tokens=10, cached_tokens=0, completion_tokens=1)


@pytest.fixture
def impatient(services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GPTSTORE_GENERATION__SILENCE", "0.1")
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


@dataclass
class Line:
    """A call with its hold, the relay that waits for it, and the worker's end of the wire."""

    relay: Relay
    task: GenerateTask
    subscription: Subscription
    valkey: redis.Redis

    def say(self, attempt: int, text: str, *, done: bool = False) -> None:
        event = TokenEvent(g=self.task.generation_id, a=attempt, text=text, ids=[7], done=DONE if done else None)
        self.valkey.xadd(token_stream(self.relay.replica), {EVENTS_FIELD: Events.dump_json([event])})

    async def next_message(self) -> None:
        """Until the relay has sent the call to the workers again; the listing's own check is in that queue too."""
        message = ""
        while TaskName.GENERATE.value not in message:
            popped = await asyncio.to_thread(self.valkey.blpop, [generation_queue(self.task.base_id)], 20)
            assert popped is not None, "no message came"
            message = str(popped[1])


def line(relay: Relay, *, streamed: bool) -> Line:
    from app.database import transaction

    with transaction() as tx:
        listing = new_listing(tx, new_account(tx).id)
        buyer = new_account(tx, 1_000_000)
        target = call_of(listing, input_price=1_000_000, output_price=1_000_000)
        generation_id = opened(tx, buyer.id, target, prompt=10, most=50)
    task = GenerateTask(
        generation_id=generation_id,
        attempt=1,
        replica=relay.replica,
        base_id=listing.base_id,
        base_digest="",
        tenant="acct-1",
        adapter_digest=None,
        token_ids=[1] * 10,
        params=SamplingParams(max_tokens=50),
        deadline=time.time() + 60,
    )
    return Line(relay, task, relay.subscribe(generation_id, streamed), redis.Redis.from_url(get_settings().redis_url))


def row(task: GenerateTask) -> Generation:
    from app.database import transaction

    with transaction() as tx:
        return tx.get_one(Generation, task.generation_id)


def test_a_plain_answer_begins_anew_when_its_worker_dies_midway(impatient: None) -> None:
    async def call() -> tuple[Line, Collected]:
        relay = Relay()
        relay.start()
        wire, collected = line(relay, streamed=False), Collected({})

        async def take() -> None:
            async for event in relay.events(wire.subscription, wire.task):
                collected.take(event)

        taking = asyncio.create_task(take())
        wire.say(1, "half of an ans")
        await wire.next_message()
        wire.say(1, "a late word of the dead")
        wire.say(2, "whole", done=True)
        await taking
        await relay.stop()
        return wire, collected

    wire, collected = asyncio.run(call())
    assert collected.choices[0].text == "whole"
    assert (row(wire.task).attempt, row(wire.task).state) == (2, "held")
    wire.valkey.close()


def test_a_stream_ends_with_an_error_and_costs_what_was_delivered(impatient: None) -> None:
    async def call() -> tuple[Line, list[str]]:
        relay = Relay()
        relay.start()
        wire, heard = line(relay, streamed=True), list[str]()
        wire.say(1, "Hello")
        wire.say(1, " there")
        with pytest.raises(GenerationFailed):
            async for event in relay.events(wire.subscription, wire.task):
                heard.append(event.text)
        await relay.stop()
        return wire, heard

    wire, heard = asyncio.run(call())
    assert heard == ["Hello", " there"]
    assert (row(wire.task).state, row(wire.task).charge_micros) == ("settled", 12)
    wire.valkey.close()


def test_a_client_that_leaves_ends_its_call_without_waiting_for_the_worker(services: Services) -> None:
    async def call() -> Line:
        relay = Relay()
        relay.start()
        wire = line(relay, streamed=False)
        wire.subscription.leave()
        with pytest.raises(GenerationFailed, match="went away"):
            await anext(relay.events(wire.subscription, wire.task))
        await relay.close(wire.subscription)
        await relay.stop()
        return wire

    wire = asyncio.run(call())
    assert wire.task.generation_id in str(wire.valkey.xrevrange(CANCELLATIONS, count=1))
    wire.valkey.close()
