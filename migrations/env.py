"""Runs migrations against GPTSTORE_DATABASE_URL, one transaction each."""

from alembic import context
from sqlalchemy import create_engine, text

from app.settings import get_settings
from app.tables import metadata


def run() -> None:
    engine = create_engine(get_settings().database_url, connect_args={"options": "-c lock_timeout=5000"})
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
        with context.begin_transaction():
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('gptstore migrations'))"))
            context.run_migrations()
    engine.dispose()


run()
