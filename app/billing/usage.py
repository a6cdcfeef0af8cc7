"""What was called, by whom, for how much: read from the settled calls."""

from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.billing.ledger import balance, seller
from app.billing.tables import Generation, LedgerPosting, LedgerTransfer

GroupBy = Literal["day", "model", "api_key"]
MAX_GROUPS = 1_000


def usage_by(tx: Session, account_id: str, group_by: GroupBy) -> list[tuple[str, int, int, int, int]]:
    """(group, calls, prompt tokens, completion tokens, micros), dearest first; days newest first (UTC)."""
    groups: dict[str, Any] = {
        "day": func.to_char(Generation.created_at, "YYYY-MM-DD"),
        "model": Generation.model,
        "api_key": func.coalesce(Generation.api_key_id, "browser"),
    }
    group = groups[group_by].label("group")
    charge = func.coalesce(func.sum(Generation.charge_micros), 0)
    query = select(
        group,
        func.count(),
        func.coalesce(func.sum(Generation.prompt_tokens), 0),
        func.coalesce(func.sum(Generation.completion_tokens), 0),
        charge,
    ).where(Generation.account_id == account_id, Generation.state == "settled")
    order = group.desc() if group_by == "day" else charge.desc()
    rows = tx.execute(query.group_by(group).order_by(order).limit(MAX_GROUPS))
    return [(str(row[0]), int(row[1]), int(row[2]), int(row[3]), int(row[4])) for row in rows]


def has_called(tx: Session, account_id: str, listing_id: str) -> bool:
    """Whether the account ever got an answer from the listing."""
    calls = select(Generation.id).where(Generation.account_id == account_id, Generation.listing_id == listing_id)
    return tx.scalar(calls.where(Generation.state == "settled").limit(1)) is not None


def earnings(tx: Session, account_id: str) -> tuple[int, dict[str, int]]:
    """What the store owes this seller, and where it came from (purchases, calls), in micros."""
    account = seller(account_id)
    query = select(LedgerTransfer.kind, func.sum(LedgerPosting.amount_micros)).join(
        LedgerPosting, LedgerPosting.transfer_id == LedgerTransfer.id
    )
    rows = tx.execute(query.where(LedgerPosting.ledger_account == account).group_by(LedgerTransfer.kind))
    return balance(tx, account), {kind: int(amount) for kind, amount in rows}
