"""Passwords, hashed with argon2id through argon2-cffi."""

from functools import lru_cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

hasher = PasswordHasher()


def hash_password(password: str) -> str:
    return hasher.hash(password)


def password_matches(password_hash: str, password: str) -> bool:
    try:
        return hasher.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


@lru_cache
def decoy_hash() -> str:
    """Checked when the e-mail is unknown, so that the answer takes as long as for a known one."""
    return hasher.hash("nobody has this password")
