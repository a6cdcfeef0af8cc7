"""Names for rows: a prefix that says what it is, then a time-ordered random part (ULID, Crockford base 32).

Sorting by id is sorting by creation time, so a cursor is just the last id seen.
"""

import secrets
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
RANDOM_BITS = 80


def new_id(prefix: str) -> str:
    """`prefix-` + 26 characters: 48 bits of unix milliseconds, 80 random bits."""
    value = time.time_ns() // 1_000_000 << RANDOM_BITS | secrets.randbits(RANDOM_BITS)
    return prefix + "-" + "".join(ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))
