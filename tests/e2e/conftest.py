"""What the end-to-end tests share, on the one running store."""

from collections.abc import Callable

import pytest

from tests.running_store import BASE, Person, Store, upload_adapter

__all__ = ["BASE", "Person", "Store"]


@pytest.fixture(scope="session")
def seller(person: Callable[[str], Person]) -> Person:
    return person("seller")


@pytest.fixture(scope="session")
def buyer(person: Callable[[str], Person]) -> Person:
    return person("buyer")


@pytest.fixture(scope="session")
def fine_tunes(seller: Person) -> list[str]:
    """Four adapters of SmolLM2 that each say something else, uploaded as trained elsewhere."""
    return [upload_adapter(seller, seed) for seed in range(4)]
