"""Pure decisions about names, passwords and scopes."""

import re

from app.errors import InvalidValue

HANDLE = re.compile(r"[a-z0-9](?:-?[a-z0-9]){1,38}")
EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,190}")
PASSWORD_LENGTH = range(8, 257)

SCOPES = frozenset(
    {"files", "fine_tuning", "models", "inference", "listings", "purchases", "wallet", "keys", "reviews"}
)

# What moves money other than by calls, or makes further keys: a key with a budget may do none of it.
UNBUDGETED = frozenset({"fine_tuning", "keys", "purchases"})

# First path segments of the pages: a seller may not take the address of the store's own rooms.
RESERVED_HANDLES = frozenset(
    """
    about account accounts admin api assets docs earnings files healthz help jobs keys legal listings login
    logout metrics models new openapi operator readyz reset-password search settings sign-in sign-out
    sign-up static store support usage v1 wallet
    """.split()  # noqa: SIM905 (a hundred quotes say less)
)


def check_handle(handle: str) -> str:
    if not HANDLE.fullmatch(handle) or handle in RESERVED_HANDLES:
        raise InvalidValue(
            "A handle has 2 to 40 lower-case letters, digits and single dashes, and is not a reserved word.",
            param="handle",
        )
    return handle


def check_email(email: str) -> str:
    """The address in lower case. Whether it exists only a message to it can tell."""
    email = email.strip().lower()
    if not EMAIL.fullmatch(email):
        raise InvalidValue("That is not an e-mail address.", param="email")
    return email


def check_password(password: str) -> str:
    if len(password) not in PASSWORD_LENGTH:
        raise InvalidValue("A password has 8 to 256 characters.", param="password")
    return password


def check_scopes(scopes: list[str], granted: frozenset[str]) -> list[str]:
    """A key may never do more than the one who makes it."""
    unknown = set(scopes) - SCOPES
    if unknown or not scopes:
        raise InvalidValue(f"scopes: choose from {', '.join(sorted(SCOPES))}.", param="scopes")
    if not set(scopes) <= granted:
        raise InvalidValue("A key cannot have scopes that its maker lacks.", param="scopes")
    return sorted(set(scopes))


def check_budget_scopes(scopes: list[str], budget_micros: int | None) -> None:
    """A budget counts calls, so a key that has one spends in no other way."""
    beyond = set(scopes) & UNBUDGETED
    if budget_micros is not None and beyond:
        raise InvalidValue(f"A key with a budget cannot have the scopes {', '.join(sorted(beyond))}.", param="scopes")
