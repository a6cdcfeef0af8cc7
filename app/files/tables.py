"""Uploaded files and what validation said of them. Bytes live in the artifact store under their digest."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, utc_now
from app.ids import new_id


class File(Base):
    """`status`: uploaded → processing → processed | error. `lease_until`: until then one worker validates it."""

    __tablename__ = "files"
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("file"))
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), index=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int]
    digest: Mapped[str]
    status: Mapped[str] = mapped_column(default="uploaded", index=True)
    status_details: Mapped[str | None]
    expires_at: Mapped[datetime | None]
    lease_until: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class DatasetReport(Base):
    __tablename__ = "dataset_reports"
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"), primary_key=True)
    report: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class FileReport(Base):
    """A full report of a file, or a cleaning of it. `status`: queued → running → succeeded | failed.

    `options`: what was asked; `result`: what was found or dropped, null until then. `lease_until`: when a worker
    that has not been heard of since is taken for dead.
    """

    __tablename__ = "file_reports"
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("report"))
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), index=True)
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"), index=True)
    against_id: Mapped[str | None] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"))
    type: Mapped[str]
    options: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(default="queued", index=True)
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str | None]
    output_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id", ondelete="SET NULL"))
    attempts: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    finished_at: Mapped[datetime | None]
