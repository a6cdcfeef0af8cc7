"""GET /v1/models: what this caller may name as `model`: bases, own fine-tunes, own and bought listings."""

from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from app.accounts.authenticate import Caller
from app.accounts.schemas import Deleted
from app.billing.purchase import callable_listings
from app.dependencies import Transaction, requires
from app.errors import Forbidden
from app.inference.model_target import Target, resolve
from app.variants.bases import ready_bases
from app.variants.tables import BaseModel as Base
from app.variants.tables import Variant
from app.variants.variants import delete_variant, list_variants
from app.wire import Page, unix

router = APIRouter(prefix="/v1/models", tags=["models"])
ModelUser = Annotated[Caller, Depends(requires("models"))]


class ModelOut(BaseModel):
    """OpenAI's model object, and ours besides."""

    id: str
    object: str = "model"
    created: int
    owned_by: str
    base_model: str
    digest: str | None
    listing: str | None = None
    lineage: dict[str, Any] | None = None

    @classmethod
    def of_base(cls, base: Base) -> Self:
        return cls(
            id=base.id, created=unix(base.created_at), owned_by="platform", base_model=base.id, digest=base.digest
        )

    @classmethod
    def of_variant(cls, variant: Variant, handle: str) -> Self:
        return cls(
            id=variant.model,
            created=unix(variant.created_at),
            owned_by=handle,
            base_model=variant.base_id,
            digest=variant.digest,
        )

    @classmethod
    def of_target(cls, target: Target, handle: str) -> Self:
        """A listing; or a base or fine-tune asked for by name."""
        call = target.call
        owner = handle if call.model.startswith("ft:") else "platform"
        listing = call.model if call.listing_id else None
        return cls(
            id=call.model,
            created=unix(target.base.created_at),
            owned_by=call.model.partition("/")[0] if listing else owner,
            base_model=target.base.id,
            digest=target.adapter_digest or target.base.digest,
            listing=listing,
            lineage=(target.base.lineage or None) if owner == handle else None,
        )


@router.get("")
def read_models(tx: Transaction, caller: ModelUser) -> Page[ModelOut]:
    """All of them at once, as OpenAI does."""
    models = [ModelOut.of_base(base) for base in ready_bases(tx)]
    models += [ModelOut.of_variant(variant, caller.handle) for variant in list_variants(tx, caller.account_id)]
    for name in callable_listings(tx, caller.account_id):
        models.append(ModelOut.of_target(resolve(tx, caller, name), caller.handle))
    return Page(data=models)


@router.get("/{model:path}")
def read_model(model: str, tx: Transaction, caller: ModelUser) -> ModelOut:
    return ModelOut.of_target(resolve(tx, caller, model), caller.handle)


@router.delete("/{model:path}")
def delete_model(model: str, tx: Transaction, caller: ModelUser) -> Deleted:
    """Own fine-tunes only; a listing is delisted, a base belongs to the store."""
    target = resolve(tx, caller, model)
    if not model.startswith("ft:"):
        raise Forbidden(f"'{target.call.model}' is not a fine-tune of yours.")
    return Deleted(id=delete_variant(tx, caller.account_id, model).model, object="model")
