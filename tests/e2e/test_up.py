"""`gptstore up` beside another store, as an ordinary user, through kill -9 of its supervisor, to its clean end."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from app.local.services import readable_by_others
from tests.conftest import ROOT
from tests.running_store import Store, free_port, started
from tests.tiny_base import tiny_base

Up = Callable[[], Store]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Starts the same small store, again after each end; whatever is left in the end is killed."""
    data = Path(tempfile.mkdtemp(prefix="gptstore-up-"))
    data.chmod(0o755)
    tiny_base(data / "tiny")
    user = ordinary_user()
    if user:
        for path in (data, data / "tiny", *(data / "tiny").iterdir()):
            shutil.chown(path, user, "nogroup")
    port, running = free_port(), list[Store]()
    environment = {
        "GPTSTORE_BASE__DEFAULT_ID": "tiny-llama",
        "GPTSTORE_BASE__DEFAULT_SOURCE": str(data / "tiny"),
        "GPTSTORE_GENERATION__BASE": "tiny-llama",
        "HOME": str(data),
    }

    def start() -> Store:
        running.append(started(data, port, environment, user=user))
        return running[-1]

    yield start
    for store in running:
        store.process.kill()
        store.process.wait()
        store.close()
    shutil.rmtree(data, ignore_errors=True)


def ordinary_user() -> str | None:
    """`nobody` when root runs the tests and nobody can read this Python; None is whoever runs them."""
    readable = all(readable_by_others(Path(each).resolve()) for each in (sys.executable, sys.prefix, ROOT))
    return "nobody" if os.getuid() == 0 and readable else None


def test_a_second_store_survives_kill_9_of_its_supervisor_and_ends_without_orphans(store: Store, up: Up) -> None:
    """Its second life is stopped while its workers still start; that a whole store ends well, `store` checks."""
    first = up()
    first.wait_for(lambda line: line.startswith("ready http"))
    handle = f"user-{secrets.token_hex(4)}"
    body = {"email": f"{handle}@example.com", "password": "correct horse", "handle": handle}
    key = httpx.post(f"{first.url}/v1/accounts", json=body).json()["api_key"]["secret"]
    headers = {"authorization": f"Bearer {key}"}
    assert httpx.get(f"{store.url}/v1/me", headers=headers).status_code == 401, "two stores share nothing"
    parts = first.processes()
    assert len(parts) > 5
    first.process.kill()
    second = up()
    second.wait_for(lambda line: line.endswith("ready api"))
    assert not psutil.wait_procs(parts, timeout=30)[1], "a part outlived its killed supervisor"
    assert httpx.get(f"{second.url}/v1/me", headers=headers).json()["account"]["handle"] == handle
    assert second.end(signal.SIGINT) == 0


def test_one_data_directory_has_one_store(store: Store) -> None:
    command = [sys.executable, "-m", "app.cli.main", "up", "--port", str(free_port()), "--data", str(store.data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "another store runs in" in done.stderr
