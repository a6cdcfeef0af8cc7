"""Calls while Valkey is dead, or takes connections and answers nothing: a refusal to try again, and nothing held."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.errors import Unavailable
from app.inference.relay import Relay
from app.main import create_app
from app.settings import get_settings
from app.tasks import sender
from tests.conftest import Base, Services, Signed
from tests.inference.test_relay import line, row


@pytest.fixture(params=["dead", "silent"])
def no_valkey(
    services: Services, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen(100)
        monkeypatch.setenv("GPTSTORE_REDIS_URL", f"unix://{tmp_path / request.param}")
        monkeypatch.setenv("GPTSTORE_GENERATION__SILENCE", "0.1")
        get_settings.cache_clear()
        sender.cache_clear()
        yield
        monkeypatch.undo()
        get_settings.cache_clear()
        sender.cache_clear()


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_refused_for_now_and_holds_nothing(
    no_valkey: None, base: Base, signed_up: Callable[..., Signed], stream: bool
) -> None:
    caller = signed_up("caller")
    body = {"model": base.id, "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    with TestClient(create_app(), headers=caller.headers) as client:
        answer = client.post("/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "5"
        assert client.get("/v1/wallet").json()["held_micros"] == 0
        assert client.get("/readyz").json()["valkey"] is False


def test_a_call_that_waits_while_valkey_is_lost_is_refused_too(no_valkey: None) -> None:
    async def call() -> str:
        relay = Relay()
        relay.start()
        wire = line(relay, streamed=False)
        with pytest.raises(Unavailable):
            await anext(relay.events(wire.subscription, wire.task))
        await relay.stop()
        wire.valkey.close()
        return row(wire.task).state

    assert asyncio.run(call()) == "released"
