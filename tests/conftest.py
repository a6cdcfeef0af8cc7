"""The real services, once per run: embedded Postgres and Valkey, the schema built by Alembic.

All tests share one database and never truncate it: each makes accounts of its own, as a store's users do.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from argon2 import PasswordHasher
from argon2.profiles import CHEAPEST
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.accounts import passwords
from app.local.services import start_postgres, start_valkey
from tests.running_store import person, store

__all__ = ["person", "store"]

ROOT = Path(__file__).parent.parent
LONG = ("chaos", "fuzz")


def pytest_addoption(parser: pytest.Parser) -> None:
    for name in LONG:
        parser.addoption(f"--{name}", action="store_true", help=f"also run tests/{name}, which take minutes")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The long tests run by `make chaos` and `make fuzz` only."""
    name = collection_path.name
    return True if name in LONG and not config.getoption(f"--{name}") else None


@dataclass(frozen=True)
class Services:
    """Where this run's store keeps its things."""

    data: Path
    environment: dict[str, str]


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """Postgres runs as another user when we are root, so the directory must be reachable: not pytest's own."""
    data = Path(tempfile.mkdtemp(prefix="gptstore-test-"))
    data.chmod(0o755)
    postgres, valkey = start_postgres(data), start_valkey(data)
    environment = {
        "GPTSTORE_DATABASE_URL": postgres.url,
        "GPTSTORE_REDIS_URL": valkey.url,
        "GPTSTORE_ARTIFACTS_URL": f"file://{data / 'artifacts'}",
        "GPTSTORE_SECRET_KEY": secrets.token_hex(32),
        "GPTSTORE_EMBEDDED": "1",
        "GPTSTORE_BASE__DEFAULT_ID": "tiny-llama",
        "GPTSTORE_LOG_LEVEL": "warning",
        "HF_HUB_OFFLINE": "1",
    }
    os.environ.update(environment)
    # Each test makes accounts of its own: with the shipped cost of a hash that was half of the suite's time.
    passwords.hasher = PasswordHasher.from_parameters(CHEAPEST)
    try:
        command.upgrade(Config(ROOT / "alembic.ini"), "head")
        yield Services(data, environment)
        from app.database import engine

        engine().dispose()
    finally:
        valkey.stop()
        postgres.stop()
        shutil.rmtree(data, ignore_errors=True)


@pytest.fixture
def tx(services: Services) -> Iterator[Session]:
    """One committed transaction, as a request has it."""
    from app.database import transaction

    with transaction() as session:
        yield session


@pytest.fixture(scope="session")
def client(services: Services) -> Iterator[TestClient]:
    from app.main import create_app

    with TestClient(create_app(), raise_server_exceptions=False) as client:
        yield client


@dataclass(frozen=True)
class Signed:
    """A signed-up account with its first key."""

    account_id: str
    handle: str
    email: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


@pytest.fixture
def signed_up(services: Services) -> Callable[..., Signed]:
    """`signed_up("seller")` → a new account whose handle begins with that word."""
    from app.database import transaction
    from app.onboarding.join import join

    def new(prefix: str = "user") -> Signed:
        handle = f"{prefix}-{secrets.token_hex(4)}"
        with transaction() as tx:
            joined = join(tx, f"{handle}@example.com", "correct horse battery", handle)
        return Signed(joined.account.id, handle, joined.user.email, joined.secret)

    return new


@dataclass(frozen=True)
class Base:
    """A base imported into this run's store; `source` is the folder it came from."""

    id: str
    digest: str
    source: Path


@pytest.fixture(scope="session")
def base(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The tiny base, imported by the real import (a child process converts it)."""
    from app.database import transaction
    from app.variants.bases import find_base, start_import
    from tests.tiny_base import tiny_base
    from workers.model_import.task import run_import

    source = tiny_base(tmp_path_factory.mktemp("tiny-base"))
    with transaction() as tx:
        start_import(tx, "tiny-llama", str(source))
    run_import("tiny-llama", str(source))
    with transaction() as tx:
        row = find_base(tx, "tiny-llama")
    assert row.status == "ready", row.status_details
    assert row.digest is not None
    return Base(row.id, row.digest, source)
