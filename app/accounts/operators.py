"""Operators: users promoted on the command line. Everything they do is audited."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.tables import AuditEntry, User
from app.errors import NotFound


def audit(tx: Session, operator: str, action: str, subject: str, data: dict[str, Any] | None = None) -> None:
    """Written in the action's own transaction: no action without its entry."""
    tx.add(AuditEntry(operator=operator, action=action, subject=subject, data=data or {}))


def promote(tx: Session, email: str, operator: str) -> User:
    """Raises NotFound."""
    user = tx.scalar(select(User).where(User.email == email.strip().lower()).with_for_update())
    if user is None:
        raise NotFound("No user has that e-mail address.")
    user.is_operator = True
    audit(tx, operator, "accounts.promote", user.id)
    return user
