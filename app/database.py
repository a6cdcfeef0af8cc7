"""The one truth: SQLAlchemy's base class, sessions and the transaction that every use case runs in."""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import BigInteger, DateTime, Engine, MetaData, Text, create_engine, event
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import DeclarativeBase, Session

from app.settings import get_settings
from app.tasks import send_enqueued

NAMING = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Rows of the store: text ids, 64-bit integers, UTC timestamps, JSONB for shapes we store but don't query."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {
        str: Text,
        int: BigInteger,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
    }


# For a server that vanished without a word: statement_timeout is kept by the server itself, so here the wait ends by
# TCP's own means; a Unix socket always hears of the end. Seconds, but for tcp_user_timeout in milliseconds.
GIVE_UP = {
    "connect_timeout": 5,
    "tcp_user_timeout": 30_000,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}


def utc_now() -> datetime:
    return datetime.now(UTC)


@lru_cache
def engine() -> Engine:
    """The process's pool. `lock_timeout` turns a stuck lock into an error instead of a stuck store.

    No overflow: such connections are closed when they come back, so each burst of calls would make its own again, at
    the price of a whole admission. Last in, first out keeps the warm ones in use.
    """
    settings = get_settings()
    made = create_engine(
        settings.database_url,
        pool_size=settings.database_pool,
        max_overflow=0,
        pool_use_lifo=True,
        connect_args=GIVE_UP
        | {
            "options": f"-c lock_timeout={settings.lock_timeout_ms} "
            f"-c statement_timeout={settings.statement_timeout_ms} -c timezone=UTC"
        },
    )
    event.listen(made, "checkout", refuse_ended)
    return made


def refuse_ended(connection: Any, *_: object) -> None:
    """The pool replaces a connection that Postgres ended. It left a farewell to read; a live idle one has nothing to
    say, and looking costs no round trip, as asking would.
    """
    ear = select.poll()
    ear.register(connection.fileno(), select.POLLIN)
    if ear.poll(0):
        raise DisconnectionError


def NewSession() -> Session:  # noqa: N802 (reads like the class it returns)
    return Session(engine(), expire_on_commit=False)


@contextmanager
def transaction() -> Iterator[Session]:
    """Commit everything or nothing; send tasks only once committed."""
    with NewSession() as session:
        with session.begin():
            yield session
        send_enqueued(session)
