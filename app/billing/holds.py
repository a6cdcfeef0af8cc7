"""Hold → settle or release: the worst case is set aside first, the true charge taken later, the rest given back."""

from collections.abc import Mapping

from sqlalchemy.orm import Session

from app.billing.ledger import Posting, available, held, post


def hold(tx: Session, account_id: str, amount: int, kind: str, reference: str) -> None:
    """Set `amount` micros aside. Raises InsufficientFunds."""
    if amount:
        post(
            tx, f"{kind}_hold", reference, [Posting(available(account_id), -amount), Posting(held(account_id), amount)]
        )


def settle_hold(
    tx: Session, account_id: str, amount: int, kind: str, reference: str, shares: Mapping[str, int]
) -> None:
    """End a hold of `amount` micros: each ledger account of `shares` gets its part, the wallet what is left.

    The shares together may not exceed the hold; call it once per reference.
    """
    charge = sum(shares.values())
    if charge > amount:
        raise ValueError(f"charge {charge} exceeds the hold {amount} of {reference}")
    if amount:
        parts = [Posting(account, share) for account, share in shares.items()]
        rest = Posting(available(account_id), amount - charge)
        post(tx, kind, reference, [Posting(held(account_id), -amount), *parts, rest])


def release_hold(tx: Session, account_id: str, amount: int, kind: str, reference: str) -> None:
    """End a hold without a charge; call it once per reference."""
    settle_hold(tx, account_id, amount, f"{kind}_release", reference, {})
