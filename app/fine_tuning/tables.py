"""Fine-tuning jobs, their events and checkpoints: the truth that a worker claims, never the message."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, utc_now
from app.ids import new_id


class FineTuningJob(Base):
    """`status` as OpenAI's: validating_files → queued → running → succeeded | failed | cancelled; or paused meanwhile.

    A worker owns the row while `lease_expires_at` is ahead and `fencing_token` is the one its claim returned.
    `priority` orders the jobs of one account; `memory_bytes` is what its worker must have.
    """

    __tablename__ = "fine_tuning_jobs"
    __table_args__ = (
        Index(
            "ix_fine_tuning_jobs_open",
            "created_at",
            postgresql_where="status IN ('validating_files', 'queued', 'running')",
        ),
    )
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("ftjob"))
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), index=True)
    model: Mapped[str]
    base_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    parent_variant_id: Mapped[str | None] = mapped_column(ForeignKey("variants.id"))
    training_file_id: Mapped[str] = mapped_column(ForeignKey("files.id"))
    validation_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    status: Mapped[str] = mapped_column(default="validating_files")
    method: Mapped[dict[str, Any]]
    hyperparameters: Mapped[dict[str, Any]]
    suffix: Mapped[str | None]
    seed: Mapped[int]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    trained_tokens: Mapped[int | None]
    held_micros: Mapped[int] = mapped_column(default=0)
    charge_micros: Mapped[int | None]
    variant_id: Mapped[str | None] = mapped_column(ForeignKey("variants.id"))
    result: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error: Mapped[dict[str, Any] | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    pause_requested: Mapped[bool] = mapped_column(default=False)
    priority: Mapped[int] = mapped_column(default=0)
    memory_bytes: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    fencing_token: Mapped[int] = mapped_column(default=0)
    lease_expires_at: Mapped[datetime | None]
    estimated_finish: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class FineTuningEvent(Base):
    __tablename__ = "fine_tuning_events"
    __table_args__ = (Index("ix_fine_tuning_events_job_id_id", "job_id", "id"),)
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("ftevent"))
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id", ondelete="CASCADE"))
    level: Mapped[str] = mapped_column(default="info")
    type: Mapped[str] = mapped_column(default="message")
    message: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class FineTuningCheckpoint(Base):
    """A trained state callable as a model: `variant_id` names it."""

    __tablename__ = "fine_tuning_checkpoints"
    __table_args__ = (Index("ix_fine_tuning_checkpoints_job_id_step", "job_id", "step", unique=True),)
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("ftckpt"))
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id", ondelete="CASCADE"))
    step: Mapped[int]
    variant_id: Mapped[str] = mapped_column(ForeignKey("variants.id"))
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
