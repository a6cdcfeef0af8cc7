"""Fine-tuned variants: adapters that an account owns and calls by name."""

from typing import Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.tables import Account
from app.database import utc_now
from app.errors import ModelNotFound
from app.ids import new_id
from app.variants.rules import model_name
from app.variants.tables import Variant


class AdapterFacts(Protocol):
    """What the registry found out about an adapter (models_registry.adapter.AdapterInfo)."""

    @property
    def rank(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    @property
    def bytes(self) -> int: ...


def create_variant(
    tx: Session,
    account_id: str,
    base_id: str,
    digest: str,
    facts: AdapterFacts,
    origin: str,
    suffix: str,
    named_after: str | None = None,
    made_by: str | None = None,
    step: int | None = None,
) -> Variant:
    """`origin`: fine_tune | upload | checkpoint. The name is made here, of the base unless told, and never changes.

    `made_by`: the job whose model or, after `step` steps, checkpoint it is; both carry the job's mark in their names.
    """
    handle = tx.scalars(select(Account.handle).where(Account.id == account_id)).one()
    variant_id = new_id("var")
    variant = Variant(
        id=variant_id,
        account_id=account_id,
        base_id=base_id,
        model=model_name(named_after or base_id, handle, suffix, made_by or variant_id, step),
        origin=origin,
        digest=digest,
        rank=facts.rank,
        parameters=facts.parameters,
        bytes=facts.bytes,
    )
    tx.add(variant)
    tx.flush()
    return variant


def find_variant(tx: Session, account_id: str, model: str) -> Variant:
    """The caller's own. A foreign name and an unknown one read the same: ModelNotFound."""
    variant = tx.scalar(select(Variant).where(Variant.model == model))
    if variant is None or variant.account_id != account_id or variant.deleted_at is not None:
        raise ModelNotFound(f"The model '{model[:200]}' does not exist.", param="model")
    return variant


def list_variants(tx: Session, account_id: str) -> list[Variant]:
    """Newest first, without checkpoints of running jobs."""
    query = select(Variant).where(Variant.account_id == account_id, Variant.deleted_at.is_(None))
    return list(tx.scalars(query.where(Variant.origin != "checkpoint").order_by(Variant.id.desc())))


def delete_variant(tx: Session, account_id: str, model: str) -> Variant:
    """It can no longer be called by its name; published listings keep what their buyers bought."""
    variant = find_variant(tx, account_id, model)
    variant.deleted_at = utc_now()
    return variant
