"""Money into a wallet."""

from sqlalchemy.orm import Session

from app.billing.gateways import sandbox
from app.billing.ledger import Posting, available, clearing, post
from app.billing.tables import TopUp
from app.errors import InvalidAmount, InvalidValue
from app.settings import get_settings


def top_up(tx: Session, account_id: str, amount: object, gateway: str) -> TopUp:
    """Raises InvalidAmount, InvalidValue (unknown gateway), Forbidden (gateway off)."""
    micros = check_amount(amount)
    if gateway != sandbox.NAME:
        raise InvalidValue(f"gateway: this store has '{sandbox.NAME}'.", param="gateway")
    sandbox.check_allowed()
    entry = TopUp(account_id=account_id, gateway=gateway, amount_micros=micros, status="succeeded")
    tx.add(entry)
    tx.flush()
    post(tx, "top_up", entry.id, [Posting(clearing(gateway), -micros), Posting(available(account_id), micros)])
    return entry


def check_amount(amount: object) -> int:
    """A whole number of micros from 1 to the store's limit."""
    limit = get_settings().billing.max_amount_micros
    if type(amount) is not int:
        raise InvalidAmount("An amount is a whole number of micros.", param="amount_micros")
    if not 1 <= amount <= limit:
        raise InvalidAmount(f"An amount is above 0 and at most {limit} micros.", param="amount_micros")
    return amount
