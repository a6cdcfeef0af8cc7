"""The store's clients of Valkey ask once: a caller who waits for retries waits in vain."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError

from app.settings import get_settings
from app.valkey import connect, connect_async


@dataclass
class Closing:
    """A server that hangs up on whoever connects."""

    listener: socket.socket
    url: str
    calls: int = 0

    def serve(self) -> None:
        while True:
            try:
                caller, _ = self.listener.accept()
            except OSError:
                return
            self.calls += 1
            caller.close()


@pytest.fixture
def closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Closing]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "closing"))
        listener.listen(20)
        server = Closing(listener, f"unix://{tmp_path / 'closing'}")
        monkeypatch.setenv("GPTSTORE_REDIS_URL", server.url)
        get_settings.cache_clear()
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    monkeypatch.undo()
    get_settings.cache_clear()


def test_a_command_is_tried_once(closing: Closing) -> None:
    with connect() as valkey, pytest.raises(ConnectionError):
        valkey.ping()
    assert closing.calls == 1


def test_so_is_one_that_an_event_loop_waits_for(closing: Closing) -> None:
    async def ask() -> None:
        async with connect_async(1.0) as valkey:
            await valkey.exists("x")

    with pytest.raises(ConnectionError):
        asyncio.run(ask())
    assert closing.calls == 1
