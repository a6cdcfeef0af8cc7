"""The running store of the end-to-end tests, and a world of tenants in it."""

import json
import os
import random
from collections.abc import Iterator

import httpx
import pytest

from app.settings import get_settings
from tests.doors import World, make_world
from tests.running_store import BASE, Store

SEED = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(2**32))


def pytest_report_header() -> str:
    return f"fuzz seed: {SEED} (set FUZZ_SEED to repeat, FUZZ_EXAMPLES for more than 150 a route)"


@pytest.fixture(scope="session")
def world(store: Store) -> Iterator[World]:
    """Rows come from this process, which reads the store's own settings; requests go over the wire."""
    from app.database import engine

    os.environ.update(json.loads((store.data / "environment.json").read_text()))
    get_settings.cache_clear()
    with httpx.Client(base_url=store.url, timeout=60) as client:
        yield make_world(client, BASE)
    engine().dispose()
