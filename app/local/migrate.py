"""Brings the database up to date with the code, from the migrations folder beside app/."""

from pathlib import Path

from alembic import command
from alembic.config import Config

ROOT = Path(__file__).parent.parent.parent


def migrate() -> None:
    """`alembic upgrade head`; safe to run from several machines at once (advisory lock)."""
    command.upgrade(Config(ROOT / "alembic.ini"), "head")
