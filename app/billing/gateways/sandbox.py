"""Play money for stores that nobody pays into: every top-up succeeds at once."""

from app.errors import Forbidden
from app.settings import get_settings

NAME = "sandbox"


def check_allowed() -> None:
    """Raises Forbidden unless this store is embedded or its operator allows play money by name."""
    if not get_settings().sandbox_gateway:
        raise Forbidden("The sandbox gateway is off in this store.")
