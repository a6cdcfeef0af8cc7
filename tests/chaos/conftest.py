"""The running store of the end-to-end tests."""

from tests.e2e.conftest import buyer, fine_tunes, person, seller, store

__all__ = ["buyer", "fine_tunes", "person", "seller", "store"]
