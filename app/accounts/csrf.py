"""A form's token is an HMAC of its session's token: another site can neither read nor make it."""

import hashlib
import hmac

from app.errors import CsrfFailed


def csrf_token(secret_key: str, session_token: str) -> str:
    return hmac.new(secret_key.encode(), b"csrf:" + session_token.encode(), hashlib.sha256).hexdigest()


def check_csrf(secret_key: str, session_token: str, given: str) -> None:
    if not hmac.compare_digest(csrf_token(secret_key, session_token).encode(), given.encode()):
        raise CsrfFailed("This form has expired; reload the page and send it again.")
