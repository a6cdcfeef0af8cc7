"""Bases: imported by operators, shared by every fine-tune."""

from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.errors import AlreadyExists, InvalidValue, ModelNotFound
from app.settings import get_settings
from app.tasks import MODEL_IMPORT_QUEUE, TaskName, enqueue
from app.variants.rules import BASE_ID
from app.variants.tables import BaseModel, Variant


class Facts(Protocol):
    """What is known of weights (workers.model_import.facts.BaseFacts)."""

    @property
    def architecture(self) -> str: ...
    @property
    def parameters(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def shape(self) -> Mapping[str, Any]: ...


def start_import(tx: Session, base_id: str, source: str) -> BaseModel:
    """Record the wish and wake a worker; a failed import may be tried again. Raises AlreadyExists, InvalidValue."""
    if not BASE_ID.fullmatch(base_id):
        raise InvalidValue("A base's name has lower-case letters, digits, dots and dashes.", param="base_id")
    base = tx.get(BaseModel, base_id)
    if base is not None and base.status == "ready":
        raise AlreadyExists(f"The base {base_id} is already imported.", param="base_id")
    if base is None:
        prices = get_settings().base
        base = BaseModel(
            id=base_id,
            source=source,
            input_micros_per_million_tokens=prices.input_micros_per_million_tokens,
            output_micros_per_million_tokens=prices.output_micros_per_million_tokens,
            training_micros_per_million_tokens=prices.training_micros_per_million_tokens,
        )
        tx.add(base)
    base.source, base.status, base.status_details = source, "importing", None
    tx.flush()
    enqueue(tx, TaskName.IMPORT_BASE, {"base_id": base_id, "source": source}, MODEL_IMPORT_QUEUE)
    return base


def finish_import(tx: Session, base_id: str, digest: str, facts: Mapping[str, Any]) -> bool:
    """`facts`: architecture, parameters, context_length, license, shape. False if it was finished before."""
    unfinished = update(BaseModel).where(BaseModel.id == base_id, BaseModel.status == "importing")
    changed = tx.execute(unfinished.values(status="ready", digest=digest, **facts).returning(BaseModel.id))
    return changed.first() is not None


def fail_import(tx: Session, base_id: str, reason: str) -> None:
    unfinished = update(BaseModel).where(BaseModel.id == base_id, BaseModel.status == "importing")
    tx.execute(unfinished.values(status="failed", status_details=reason[:1000]))


def find_base(tx: Session, base_id: str) -> BaseModel:
    """In whatever state it is. Raises ModelNotFound."""
    base = tx.get(BaseModel, base_id)
    if base is None:
        raise ModelNotFound(f"The base '{base_id}' does not exist.", param="model")
    return base


def find_ready_base(tx: Session, base_id: str) -> BaseModel:
    """One of the store's own. Raises ModelNotFound until its import is done."""
    base = tx.get(BaseModel, base_id)
    if base is None or base.status != "ready" or base.account_id is not None:
        raise ModelNotFound(f"The model '{base_id}' does not exist.", param="model")
    return base


def base_of(tx: Session, variant: Variant) -> BaseModel:
    """What a variant runs on, whosever base that is: who may use the variant is asked before. Raises ModelNotFound."""
    base = tx.get(BaseModel, variant.base_id)
    if base is None or base.status != "ready":
        raise ModelNotFound(f"The base of '{variant.model}' is not ready.", param="model")
    return base


def ready_bases(tx: Session) -> list[BaseModel]:
    """The store's own; accounts' bases are called through their variants only."""
    ready = select(BaseModel).where(BaseModel.status == "ready", BaseModel.account_id.is_(None))
    return list(tx.scalars(ready.order_by(BaseModel.id)))


def add_trained_base(
    tx: Session, account_id: str, base_id: str, parent: BaseModel, digest: str, facts: Facts, lineage: Mapping[str, Any]
) -> BaseModel:
    """A base that training made of `parent`: at its prices, under its licence."""
    base = BaseModel(
        id=base_id,
        source=f"job:{lineage['job']}",
        status="ready",
        digest=digest,
        architecture=facts.architecture,
        parameters=facts.parameters,
        context_length=facts.context_length,
        license=parent.license,
        shape=dict(facts.shape),
        input_micros_per_million_tokens=parent.input_micros_per_million_tokens,
        output_micros_per_million_tokens=parent.output_micros_per_million_tokens,
        training_micros_per_million_tokens=parent.training_micros_per_million_tokens,
        account_id=account_id,
        lineage=dict(lineage),
    )
    tx.add(base)
    tx.flush()
    return base


def unfinished_imports(tx: Session) -> list[BaseModel]:
    return list(tx.scalars(select(BaseModel).where(BaseModel.status == "importing")))
