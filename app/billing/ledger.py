"""The double-entry ledger: money only moves by a transfer whose postings sum to 0, and nothing is ever rewritten."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ARRAY, BigInteger, Text, bindparam, func, select, text
from sqlalchemy.orm import Session

from app.billing.tables import LedgerPosting
from app.database import utc_now
from app.errors import InsufficientFunds
from app.ids import new_id

REVENUE = "platform:revenue"
PROMOTIONS = "platform:promotions"


def available(account_id: str) -> str:
    """The ledger account of what a wallet can spend."""
    return f"wallet:{account_id}:available"


def held(account_id: str) -> str:
    """The ledger account of what a wallet has set aside for calls and jobs under way."""
    return f"wallet:{account_id}:held"


def seller(account_id: str) -> str:
    """The ledger account of what the store owes a seller. It may go negative after a clawback."""
    return f"seller:{account_id}"


def clearing(gateway: str) -> str:
    """The ledger account of money on its way through a payment gateway."""
    return f"clearing:{gateway}"


@dataclass(frozen=True)
class Posting:
    """One line: signed micros on a ledger account."""

    ledger_account: str
    amount_micros: int


# One round trip: each call of a model makes two transfers, and its wallet stays locked until the commit. Nothing comes
# back when the wallet is unknown or a balance would fall below 0; then nothing was written either.
POST = text(
    "WITH moved AS (UPDATE wallets SET available_micros = available_micros + :available, "
    "held_micros = held_micros + :held WHERE account_id = :account_id "
    "AND available_micros + :available >= 0 AND held_micros + :held >= 0 RETURNING available_micros, held_micros), "
    "transfer AS (INSERT INTO ledger_transfers (id, kind, reference, created_at) "
    "SELECT :id, :kind, :reference, :now FROM moved RETURNING id), "
    "lines AS (INSERT INTO ledger_postings (transfer_id, ledger_account, amount_micros, balance_after) "
    "SELECT transfer.id, line.ledger_account, line.amount, CASE line.ledger_account "
    "WHEN :available_account THEN moved.available_micros WHEN :held_account THEN moved.held_micros END "
    "FROM transfer, moved, unnest(:accounts, :amounts) AS line (ledger_account, amount)) "
    "SELECT 1 FROM moved"
).bindparams(
    bindparam("available", type_=BigInteger),
    bindparam("held", type_=BigInteger),
    bindparam("accounts", type_=ARRAY(Text)),
    bindparam("amounts", type_=ARRAY(BigInteger)),
)


def post(tx: Session, kind: str, reference: str, postings: Sequence[Posting]) -> None:
    """Record a transfer and move its wallet, all or nothing.

    `postings` must sum to 0 (a trigger refuses them otherwise). Raises InsufficientFunds when the wallet lacks the
    money, ValueError unless exactly one wallet is named: two, locked by one statement, could deadlock.
    """
    tx.flush()  # what the transfer is about comes before it
    account_id = wallet_of(postings)
    lines = [posting for posting in postings if posting.amount_micros]
    values = {
        "id": new_id("xfer"),
        "kind": kind,
        "reference": reference,
        "now": utc_now(),
        "account_id": account_id,
        "available_account": available(account_id),
        "available": moved(lines, available(account_id)),
        "held_account": held(account_id),
        "held": moved(lines, held(account_id)),
        "accounts": [line.ledger_account for line in lines],
        "amounts": [line.amount_micros for line in lines],
    }
    if tx.execute(POST, values).first() is None:
        raise InsufficientFunds("The wallet does not hold enough; top it up.")


def wallet_of(postings: Sequence[Posting]) -> str:
    """The account whose wallet these move."""
    sides = {each.ledger_account for each in postings if each.ledger_account.startswith("wallet:")}
    accounts = {side.split(":")[1] for side in sides}
    if len(accounts) != 1:
        raise ValueError(f"a transfer moves one wallet, not {len(accounts)}")
    (account_id,) = accounts
    if not sides <= {available(account_id), held(account_id)}:
        raise ValueError(f"a wallet has no such side: {sorted(sides)}")
    return account_id


def moved(lines: Sequence[Posting], ledger_account: str) -> int:
    return sum(line.amount_micros for line in lines if line.ledger_account == ledger_account)


def balance(tx: Session, ledger_account: str) -> int:
    """The sum of an account's postings, in micros."""
    total = select(func.coalesce(func.sum(LedgerPosting.amount_micros), 0))
    return int(tx.scalar(total.where(LedgerPosting.ledger_account == ledger_account)) or 0)


VERIFY = {
    "transfer does not sum to 0": (
        "SELECT transfer_id FROM ledger_postings GROUP BY transfer_id HAVING sum(amount_micros) <> 0"
    ),
    "wallet differs from its postings": (
        "SELECT account_id FROM wallets w WHERE available_micros <> (SELECT coalesce(sum(amount_micros), 0) "
        "FROM ledger_postings WHERE ledger_account = 'wallet:' || w.account_id || ':available') "
        "OR held_micros <> (SELECT coalesce(sum(amount_micros), 0) "
        "FROM ledger_postings WHERE ledger_account = 'wallet:' || w.account_id || ':held')"
    ),
    "hold differs from the open calls and jobs": (
        "SELECT account_id FROM wallets w WHERE held_micros <> "
        "(SELECT coalesce(sum(held_micros), 0) FROM generations WHERE account_id = w.account_id AND state = 'held') "
        "+ (SELECT coalesce(sum(held_micros), 0) FROM fine_tuning_jobs WHERE account_id = w.account_id "
        "AND status IN ('validating_files', 'queued', 'running', 'paused'))"
    ),
    "wallet below 0": "SELECT account_id FROM wallets WHERE available_micros < 0 OR held_micros < 0",
}


def verify(tx: Session) -> list[str]:
    """Every broken promise of the ledger, as sentences; an empty list is a sound ledger. Reads one snapshot."""
    tx.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    books = tx.connection()
    return [f"{promise}: {row[0]}" for promise, query in VERIFY.items() for row in books.exec_driver_sql(query)]
