"""A call's money: hold the worst case at admission, settle what was produced, or release. One row, one state.

Only `end_calls` ends a call, with its row locked, so whoever comes first decides: the worker, the relay of a client
whose worker died, or upkeep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import ARRAY, Row, Table, Text, bindparam, case, func, insert, select, update
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
# Plain SQL: the unit of work would take longer than the statements.
CALLS = cast(Table, Generation.__table__)
INSERT_CALL = insert(CALLS)
OPEN_CALLS = (
    select(CALLS)
    .where(CALLS.c.id == func.any(bindparam("ids", type_=ARRAY(Text))), CALLS.c.state == "held")
    .order_by(CALLS.c.id)
    .with_for_update()
)
END_CALLS = (
    update(CALLS)
    .where(CALLS.c.id == bindparam("ended"))
    .values({name: bindparam(name) for name in ("state", "completion_tokens", "charge_micros", "finished_at")})
)


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


@dataclass(frozen=True)
class Ending:
    """What became of one attempt of a call; `completion_tokens` None gives the whole hold back."""

    generation_id: str
    attempt: int
    prompt_tokens: int = 0
    completion_tokens: int | None = None


def settle_call(tx: Session, generation_id: str, attempt: int, prompt_tokens: int, completion_tokens: int) -> bool:
    """Charge what was produced and give the rest of the hold back; False if the call was ended before."""
    return bool(end_calls(tx, [Ending(generation_id, attempt, prompt_tokens, completion_tokens)]))


def release_call(tx: Session, generation_id: str, attempt: int) -> bool:
    """Give the whole hold back; False if the call was ended before."""
    return bool(end_calls(tx, [Ending(generation_id, attempt)]))


def end_calls(tx: Session, endings: Sequence[Ending]) -> int:
    """End those that are open, in the attempt that is named; returns how many.

    Rows are locked in the order of their ids and then wallets in theirs, so two that end many calls never deadlock.
    """
    if not endings:
        return 0
    by_attempt = {(each.generation_id, each.attempt): each for each in endings}
    bills = [
        (call, ending, shares_of(call, ending))
        for call in tx.execute(OPEN_CALLS, {"ids": sorted({each.generation_id for each in endings})})
        if (ending := by_attempt.get((call.id, call.attempt))) is not None
    ]
    if bills:
        tx.execute(END_CALLS, [end_of(ending, sum(shares.values())) for _, ending, shares in bills])
    for call, ending, shares in sorted(bills, key=lambda each: str(each[0].account_id)):
        if ending.completion_tokens is None:
            release_hold(tx, call.account_id, call.held_micros, KIND, call.id)
        else:
            settle_hold(tx, call.account_id, call.held_micros, KIND, call.id, shares)
    return len(bills)


def end_of(ending: Ending, charge: int) -> dict[str, Any]:
    """What END_CALLS writes."""
    return {
        "ended": ending.generation_id,
        "state": "released" if ending.completion_tokens is None else "settled",
        "completion_tokens": ending.completion_tokens or 0,
        "charge_micros": charge,
        "finished_at": utc_now(),
    }


def shares_of(call: Row[Any], ending: Ending) -> dict[str, int]:
    """Who gets how much of the charge, by ledger account; nobody anything of a released call."""
    prompt_tokens, completion_tokens = ending.prompt_tokens, ending.completion_tokens
    if completion_tokens is None:
        return {}
    price_in, price_out = call.input_micros_per_million_tokens, call.output_micros_per_million_tokens
    charge = min(token_micros(prompt_tokens, completion_tokens, price_in, price_out), call.held_micros)
    if call.seller_account_id is None:
        return {REVENUE: charge}
    base_part = token_micros(
        prompt_tokens,
        completion_tokens,
        call.base_input_micros_per_million_tokens,
        call.base_output_micros_per_million_tokens,
    )
    split = split_call(charge, base_part, get_settings().billing.fee_percent)
    return {REVENUE: split.platform, seller(call.seller_account_id): split.seller}


def next_attempt(tx: Session, generation_id: str, attempt: int, lease_seconds: float) -> int | None:
    """The number of the new attempt, after which the old one can no longer settle; None if the call has ended."""
    same = update(Generation).where(
        Generation.id == generation_id, Generation.state == "held", Generation.attempt == attempt
    )
    lease = utc_now() + timedelta(seconds=lease_seconds)
    return tx.scalar(same.values(attempt=attempt + 1, lease_expires_at=lease).returning(Generation.attempt))


def renew_leases(tx: Session, generation_ids: Sequence[str], seconds: float) -> None:
    """Whoever works on these calls, or waits for them, says so. One whose row is locked is being ended or renewed."""
    mine = select(Generation.id).where(Generation.id.in_(generation_ids), Generation.state == "held")
    alive = update(Generation).where(Generation.id.in_(mine.with_for_update(skip_locked=True)))
    tx.execute(alive.values(lease_expires_at=utc_now() + timedelta(seconds=seconds)))


def release_stale_calls(tx: Session, grace_seconds: float = 10.0, limit: int = 500) -> int:
    """Release the holds of calls whose lease ran out: neither a worker nor a relay is left. Returns how many.

    `grace_seconds` after that, so that a relay that has just missed a beat still settles its own count.
    """
    stale = select(Generation.id, Generation.attempt).where(
        Generation.state == "held", Generation.lease_expires_at < utc_now() - timedelta(seconds=grace_seconds)
    )
    rows = tx.execute(stale.limit(limit).with_for_update(skip_locked=True)).all()
    return end_calls(tx, [Ending(generation_id, attempt) for generation_id, attempt in rows])
