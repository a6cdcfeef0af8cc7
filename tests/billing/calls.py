"""Calls as admission opens them."""

from sqlalchemy.orm import Session

from app.billing.metering import CallTarget, open_call
from app.catalog.tables import Listing
from app.ids import new_id


def call_of(
    listing: Listing, *, input_price: int, output_price: int, base_input: int = 50_000, base_output: int = 150_000
) -> CallTarget:
    """Somebody else's call of `listing`; micros per million tokens."""
    return CallTarget(
        model=f"someone/{listing.name}",
        base_id=listing.base_id,
        base_input_micros_per_million_tokens=base_input,
        base_output_micros_per_million_tokens=base_output,
        input_micros_per_million_tokens=input_price,
        output_micros_per_million_tokens=output_price,
        seller_account_id=listing.account_id,
        listing_id=listing.id,
        version_number=1,
    )


def opened(
    tx: Session,
    account_id: str,
    target: CallTarget,
    *,
    prompt: int,
    most: int,
    lease: float = 30.0,
    api_key_id: str | None = None,
) -> str:
    """The id of a call whose worst case (`prompt` + `most` tokens) is held."""
    generation_id = new_id("chatcmpl")
    open_call(
        tx,
        generation_id=generation_id,
        account_id=account_id,
        api_key_id=api_key_id,
        has_budget=api_key_id is not None,
        target=target,
        prompt_tokens=prompt,
        max_completion_tokens=most,
        lease_seconds=lease,
    )
    return generation_id
