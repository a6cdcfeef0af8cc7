"""An account's wallet: opened once, with the welcome credit where the store grants one."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.billing.ledger import PROMOTIONS, Posting, available, post
from app.billing.tables import LedgerPosting, LedgerTransfer, Wallet
from app.settings import get_settings


def open_wallet(tx: Session, account_id: str) -> Wallet:
    """The transfer's unique (kind, reference) makes it one welcome per account."""
    wallet = Wallet(account_id=account_id)
    tx.add(wallet)
    tx.flush()
    credit = get_settings().welcome_credit_micros
    if credit:
        postings = [Posting(PROMOTIONS, -credit), Posting(available(account_id), credit)]
        post(tx, "welcome_credit", account_id, postings)
        tx.refresh(wallet)
    return wallet


def read_wallet(tx: Session, account_id: str) -> Wallet:
    """The balances as committed; never a cached row."""
    return tx.get_one(Wallet, account_id, populate_existing=True)


def wallet_entries(
    tx: Session, account_id: str, after: int | None, limit: int
) -> list[tuple[LedgerPosting, LedgerTransfer]]:
    """Postings on this wallet with what caused them, newest first, up to `limit + 1`."""
    sides = [f"wallet:{account_id}:available", f"wallet:{account_id}:held"]
    query = select(LedgerPosting, LedgerTransfer).join(LedgerTransfer, LedgerTransfer.id == LedgerPosting.transfer_id)
    query = query.where(LedgerPosting.ledger_account.in_(sides))
    if after is not None:
        query = query.where(LedgerPosting.id < after)
    return [(row[0], row[1]) for row in tx.execute(query.order_by(LedgerPosting.id.desc()).limit(limit + 1))]
