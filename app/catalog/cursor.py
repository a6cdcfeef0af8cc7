"""Opaque cursors of the catalog: a place in an order, signed, so that only places given out are accepted."""

import base64
import binascii
import hashlib
import hmac
import json

from app.errors import InvalidCursor
from app.settings import get_settings


def write_cursor(order: str, value: int, listing_id: str) -> str:
    body = json.dumps([order, value, listing_id]).encode()
    return base64.urlsafe_b64encode(signature(body) + body).decode().rstrip("=")


def read_cursor(cursor: str, order: str) -> tuple[int, str]:
    """Only cursors that this store wrote, for the same order. Raises InvalidCursor."""
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except (binascii.Error, ValueError) as error:
        raise InvalidCursor("That cursor was not given out by this list.", param="after") from error
    mark, body = raw[:16], raw[16:]
    if not hmac.compare_digest(mark, signature(body)):
        raise InvalidCursor("That cursor was not given out by this list.", param="after")
    written, value, listing_id = json.loads(body)
    if written != order:
        raise InvalidCursor("That cursor belongs to another order.", param="after")
    return int(value), str(listing_id)


def signature(body: bytes) -> bytes:
    return hmac.new(get_settings().secret_key.encode(), b"cursor:" + body, hashlib.sha256).digest()[:16]
