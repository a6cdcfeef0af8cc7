"""The people of the end-to-end tests."""

from tests.e2e.conftest import buyer, fine_tunes, seller

__all__ = ["buyer", "fine_tunes", "seller"]
