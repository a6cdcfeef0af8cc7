"""What a `model` string means to this caller: a base, an own fine-tune, or a listing (maybe one pinned version)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from app.accounts.authenticate import Caller
from app.billing.metering import CallTarget
from app.billing.purchase import is_entitled
from app.catalog.find import find_listing, published_version
from app.catalog.prices import price_in_force
from app.errors import ModelNotFound, ModelNotPurchased, NotFound
from app.variants.bases import base_of, find_ready_base
from app.variants.tables import BaseModel, Variant
from app.variants.variants import find_variant

LISTING = re.compile(r"([a-z0-9-]{1,40})/([a-z0-9._-]{1,80})(?:@([1-9][0-9]{0,8}))?")


@dataclass(frozen=True)
class Target:
    """What to run (`base`, adapter digest) and how to charge it (`call`); a listing brings its presets."""

    base: BaseModel
    adapter_digest: str | None
    call: CallTarget
    system_prompt: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


def resolve(tx: Session, caller: Caller, model: str) -> Target:
    """Raises ModelNotFound (unknown and foreign read the same) and ModelNotPurchased."""
    if "/" in model:
        return listing_target(tx, caller, model)
    if model.startswith("ft:"):
        variant = find_variant(tx, caller.account_id, model)
        base = base_of(tx, variant)
        return Target(base, variant.adapter_digest, platform_priced(model, base))
    base = find_ready_base(tx, model)
    return Target(base, None, platform_priced(model, base))


def platform_priced(model: str, base: BaseModel) -> CallTarget:
    """Bases and own fine-tunes cost the base's platform price."""
    return CallTarget(
        model=model,
        base_id=base.id,
        base_input_micros_per_million_tokens=base.input_micros_per_million_tokens,
        base_output_micros_per_million_tokens=base.output_micros_per_million_tokens,
        input_micros_per_million_tokens=base.input_micros_per_million_tokens,
        output_micros_per_million_tokens=base.output_micros_per_million_tokens,
        seller_account_id=None,
        listing_id=None,
        version_number=None,
    )


def listing_target(tx: Session, caller: Caller, model: str) -> Target:
    """The listing's latest published version, or the one after `@`."""
    match = LISTING.fullmatch(model)
    if match is None:
        raise ModelNotFound(f"The model '{model[:200]}' does not exist.", param="model")
    try:
        listing = find_listing(tx, match[1], match[2], viewer_account_id=caller.account_id)
        version = published_version(tx, listing, int(match[3]) if match[3] else None)
    except NotFound as error:
        raise ModelNotFound(f"The model '{model}' does not exist.", param="model") from error
    if not is_entitled(tx, caller.account_id, listing):
        if listing.delisted_at is not None:
            raise ModelNotFound(f"The model '{model}' does not exist.", param="model")
        raise ModelNotPurchased(f"Buy access to '{model}' first: POST /v1/purchases.", param="model")
    variant = tx.get_one(Variant, version.variant_id)
    base = base_of(tx, variant)
    own = listing.account_id == caller.account_id
    price = price_in_force(tx, listing.id)
    call = CallTarget(
        model=model,
        base_id=base.id,
        base_input_micros_per_million_tokens=base.input_micros_per_million_tokens,
        base_output_micros_per_million_tokens=base.output_micros_per_million_tokens,
        input_micros_per_million_tokens=(base if own else price).input_micros_per_million_tokens,
        output_micros_per_million_tokens=(base if own else price).output_micros_per_million_tokens,
        seller_account_id=None if own else listing.account_id,
        listing_id=listing.id,
        version_number=version.number,
    )
    return Target(base, variant.adapter_digest, call, version.system_prompt, version.defaults)
