"""A call's money: hold the worst case at admission, settle what was produced, or release. One row, one state.

`settle_call` and `release_call` are one conditional UPDATE each, so whoever comes first decides: the worker, the
relay of a client whose worker died, or upkeep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import Table, case, func, insert, select, update
from sqlalchemy.orm import Session

from app.accounts.tables import ApiKey
from app.billing.holds import hold, release_hold, settle_hold
from app.billing.ledger import REVENUE, seller
from app.billing.rules import completion_tokens_within, split_call, token_micros
from app.billing.tables import Generation
from app.billing.wallet import read_wallet
from app.database import utc_now
from app.errors import InsufficientFunds, InsufficientQuota
from app.settings import get_settings

KIND = "generation"
# Plain SQL: the unit of work would take longer than the statement.
INSERT_CALL = insert(cast(Table, Generation.__table__))


@dataclass(frozen=True)
class CallTarget:
    """What is called, and the prices (micros per million tokens) in force at admission: the row's columns by name.

    `seller_account_id` is None for bases, own fine-tunes and own listings: those cost the base's price.
    """

    model: str
    base_id: str
    base_input_micros_per_million_tokens: int
    base_output_micros_per_million_tokens: int
    input_micros_per_million_tokens: int
    output_micros_per_million_tokens: int
    seller_account_id: str | None = None
    listing_id: str | None = None
    version_number: int | None = None


def open_call(
    tx: Session,
    *,
    generation_id: str,
    account_id: str,
    api_key_id: str | None,
    has_budget: bool,
    target: CallTarget,
    prompt_tokens: int,
    max_completion_tokens: int,
    lease_seconds: float,
) -> None:
    """Hold the worst case and record the call. Raises InsufficientQuota (wallet or the key's budget).

    `has_budget`: what identified the caller has just read it, and most keys have none.
    """
    worst = token_micros(
        prompt_tokens,
        max_completion_tokens,
        target.input_micros_per_million_tokens,
        target.output_micros_per_million_tokens,
    )
    if api_key_id is not None and has_budget:
        check_budget(tx, account_id, api_key_id, worst)
    try:
        hold(tx, account_id, worst, KIND, generation_id)
    except InsufficientFunds as error:
        raise InsufficientQuota(
            f"This call may cost up to {worst} micros; the wallet has less. Top it up or lower max_tokens."
        ) from error
    call = {
        "id": generation_id,
        "account_id": account_id,
        "api_key_id": api_key_id,
        "held_micros": worst,
        "prompt_tokens": prompt_tokens,
        "lease_expires_at": utc_now() + timedelta(seconds=lease_seconds),
    }
    tx.execute(INSERT_CALL, call | vars(target))


def check_budget(tx: Session, account_id: str, api_key_id: str, worst: int) -> None:
    """A key with a budget spends no more than that in its life. Its row is locked: two calls share one budget."""
    budget = tx.scalar(select(ApiKey.budget_micros).where(ApiKey.id == api_key_id).with_for_update())
    if budget is None:
        return
    counted = case(
        (Generation.state == "held", Generation.held_micros), else_=func.coalesce(Generation.charge_micros, 0)
    )
    calls = (Generation.account_id == account_id) & (Generation.api_key_id == api_key_id)
    spent = tx.scalar(select(func.coalesce(func.sum(counted), 0)).where(calls)) or 0
    if spent + worst > budget:
        raise InsufficientQuota("This key's budget does not cover the call.")


def affordable_tokens(tx: Session, account_id: str, target: CallTarget, prompt_tokens: int) -> int:
    """Completion tokens that the wallet covers besides the prompt, at the target's prices."""
    return completion_tokens_within(
        read_wallet(tx, account_id).available_micros,
        prompt_tokens,
        target.input_micros_per_million_tokens,
        target.output_micros_per_million_tokens,
    )


def settle_call(tx: Session, generation_id: str, attempt: int, prompt_tokens: int, completion_tokens: int) -> bool:
    """Charge what was produced and give the rest of the hold back; False if the call was ended before."""
    call = end(tx, generation_id, attempt, state="settled", completion_tokens=completion_tokens)
    if call is None:
        return False
    price_in, price_out = call.input_micros_per_million_tokens, call.output_micros_per_million_tokens
    charge = min(token_micros(prompt_tokens, completion_tokens, price_in, price_out), call.held_micros)
    call.charge_micros = charge
    base_part = token_micros(
        prompt_tokens,
        completion_tokens,
        call.base_input_micros_per_million_tokens,
        call.base_output_micros_per_million_tokens,
    )
    shares = {REVENUE: charge}
    if call.seller_account_id is not None:
        split = split_call(charge, base_part, get_settings().billing.fee_percent)
        shares = {REVENUE: split.platform, seller(call.seller_account_id): split.seller}
    settle_hold(tx, call.account_id, call.held_micros, KIND, generation_id, shares)
    return True


def release_call(tx: Session, generation_id: str, attempt: int) -> bool:
    """Give the whole hold back; False if the call was ended before."""
    call = end(tx, generation_id, attempt, state="released", completion_tokens=0, charge_micros=0)
    if call is None:
        return False
    release_hold(tx, call.account_id, call.held_micros, KIND, generation_id)
    return True


def end(tx: Session, generation_id: str, attempt: int, **values: object) -> Generation | None:
    """The one conditional UPDATE: only an open call, only its present attempt."""
    open_call = update(Generation).where(
        Generation.id == generation_id, Generation.state == "held", Generation.attempt == attempt
    )
    ended: dict[str, Any] = {**values, "finished_at": utc_now()}
    return tx.scalars(
        open_call.values(**ended).returning(Generation), execution_options={"populate_existing": True}
    ).one_or_none()


def next_attempt(tx: Session, generation_id: str, attempt: int, lease_seconds: float) -> int | None:
    """The number of the new attempt, after which the old one can no longer settle; None if the call has ended."""
    same = update(Generation).where(
        Generation.id == generation_id, Generation.state == "held", Generation.attempt == attempt
    )
    lease = utc_now() + timedelta(seconds=lease_seconds)
    return tx.scalar(same.values(attempt=attempt + 1, lease_expires_at=lease).returning(Generation.attempt))


def renew_leases(tx: Session, generation_ids: Sequence[str], seconds: float) -> None:
    """Whoever works on these calls, or waits for them, says so."""
    alive = update(Generation).where(Generation.id.in_(generation_ids), Generation.state == "held")
    tx.execute(alive.values(lease_expires_at=utc_now() + timedelta(seconds=seconds)))


def release_stale_calls(tx: Session, grace_seconds: float = 10.0, limit: int = 500) -> int:
    """Release the holds of calls whose lease ran out: neither a worker nor a relay is left. Returns how many.

    `grace_seconds` after that, so that a relay that has just missed a beat still settles its own count.
    """
    stale = select(Generation.id, Generation.attempt).where(
        Generation.state == "held", Generation.lease_expires_at < utc_now() - timedelta(seconds=grace_seconds)
    )
    rows = tx.execute(stale.order_by(Generation.account_id).limit(limit).with_for_update(skip_locked=True)).all()
    return sum(release_call(tx, generation_id, attempt) for generation_id, attempt in rows)
