"""The models: bases imported by operators, and the variants (adapters) that accounts own."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, utc_now
from app.ids import new_id


class BaseModel(Base):
    """A base. `id` is its public name; `status`: importing → ready | failed. Prices: micros per million tokens.

    `shape` holds what adapter checks and estimates need: {layers, hidden_size, vocabulary, linears: {name: [out, in]}}.
    It is read on first use: hundreds of linears as JSON took a third of a call's admission, which needs none of them.
    `account_id`: whose training made it, callable through that account's variant only; None: the store's own.
    `lineage`: what it was made of.
    """

    __tablename__ = "base_models"
    id: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str]
    status: Mapped[str] = mapped_column(default="importing")
    status_details: Mapped[str | None]
    digest: Mapped[str | None]
    architecture: Mapped[str | None]
    parameters: Mapped[int | None]
    context_length: Mapped[int | None]
    license: Mapped[str | None]
    shape: Mapped[dict[str, Any]] = mapped_column(default=dict, deferred=True)
    input_micros_per_million_tokens: Mapped[int]
    output_micros_per_million_tokens: Mapped[int]
    training_micros_per_million_tokens: Mapped[int]
    account_id: Mapped[str | None] = mapped_column(ForeignKey("accounts.id"))
    lineage: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Variant(Base):
    """A fine-tuned adapter of a base, or a base of one's own. `model` is its name, `ft:base:handle:suffix:id`.

    `origin`: fine_tune | upload | checkpoint. `digest` names the adapter folder in the artifact store; with `rank` 0
    it is the folder of the weights themselves, those of `base_id`.
    """

    __tablename__ = "variants"
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("var"))
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), index=True)
    base_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    model: Mapped[str] = mapped_column(unique=True)
    origin: Mapped[str]
    digest: Mapped[str]
    rank: Mapped[int]
    parameters: Mapped[int]
    bytes: Mapped[int]
    exports: Mapped[dict[str, Any]] = mapped_column(default=dict)
    deleted_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    @property
    def is_adapter(self) -> bool:
        return self.rank > 0

    @property
    def adapter_digest(self) -> str | None:
        """What the engine loads on top of the base; None when the base is all."""
        return self.digest if self.is_adapter else None
