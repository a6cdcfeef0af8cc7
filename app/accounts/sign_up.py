"""Sign-up: a user, an account and the membership that joins them."""

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.accounts.passwords import hash_password
from app.accounts.rules import check_email, check_handle, check_password
from app.accounts.tables import Account, Membership, User
from app.errors import AlreadyExists


def sign_up(tx: Session, email: str, password: str, handle: str, display_name: str | None) -> tuple[User, Account]:
    """Raises InvalidValue for malformed input, AlreadyExists for a taken handle or e-mail."""
    user = User(email=check_email(email), password_hash=hash_password(check_password(password)))
    account = Account(handle=check_handle(handle), display_name=display_name or handle)
    try:
        with tx.begin_nested():
            tx.add_all([user, account])
            tx.flush()
            tx.add(Membership(user_id=user.id, account_id=account.id))
    except IntegrityError as error:
        taken = tx.scalar(select(Account.id).where(Account.handle == handle)) is not None
        param = "handle" if taken else "email"
        raise AlreadyExists(f"That {param} is taken.", param=param) from error
    return user, account
