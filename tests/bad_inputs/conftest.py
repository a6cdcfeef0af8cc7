"""Who sends the bad input."""

import pytest

from app.database import transaction
from tests.conftest import Services, Signed
from tests.factories import new_member


@pytest.fixture(scope="module")
def user(services: Services) -> Signed:
    with transaction() as tx:
        return new_member(tx)
