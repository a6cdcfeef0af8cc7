"""Listings, adapters and keys as nobody may have them."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.bad_inputs.answers import told
from tests.conftest import Services, Signed
from tests.factories import listing_body, new_listing

LISTINGS: list[tuple[dict[str, Any], str]] = [
    ({"owner_id": "acct-x"}, "unknown_parameter"),
    ({"balance": 5}, "unknown_parameter"),
    ({"is_admin": True}, "unknown_parameter"),
    ({"title": ""}, "invalid_value"),
    ({"title": None}, "invalid_value"),
    ({"category": "cars"}, "invalid_value"),
    ({"tags": ["<script>"]}, "invalid_value"),
]


@pytest.mark.parametrize(("change", "code"), LISTINGS, ids=[str(each[0]) for each in LISTINGS])
def test_a_change_that_no_listing_takes(
    client: TestClient, user: Signed, services: Services, change: dict[str, Any], code: str
) -> None:
    from app.database import transaction

    with transaction() as tx:
        listing = new_listing(tx, user.account_id)
    answer = client.patch(f"/v1/listings/{user.handle}/{listing.name}", json=change, headers=user.headers)
    assert told(answer) == (400, code)


def test_token_prices_below_the_bases(client: TestClient, user: Signed, services: Services) -> None:
    from app.database import transaction
    from tests.factories import new_variant

    with transaction() as tx:
        model = new_variant(tx, user.account_id).model
    body = listing_body(model)
    body["prices"] |= {"output_micros_per_million_tokens": 149_999}
    answer = client.post("/v1/listings", json=body, headers=user.headers)
    assert told(answer) == (400, "price_below_base")


def test_fields_of_an_adapters_form(client: TestClient, user: Signed) -> None:
    """The files themselves are judged in tests/variants."""
    names = ("adapter_model.safetensors", "adapter_config.json")
    files: dict[str, tuple[str, bytes]] = {name: (name, b"{}") for name in names}
    cases: list[tuple[dict[str, str], dict[str, tuple[str, bytes]], str]] = [
        ({"base_model": "a\0b"}, files, "invalid_value"),
        ({"base_model": "a", "suffix": "../x"}, files, "invalid_value"),
        ({"base_model": "a", "auto_mapping": "os"}, files, "unknown_parameter"),
        ({}, files, "missing_required_parameter"),
        ({"base_model": "a"}, {names[0]: files[names[0]]}, "missing_required_parameter"),
        ({"base_model": "a"}, files | {names[0]: ("weights.bin", b"x")}, "unsafe_format"),
        ({"base_model": "a"}, files | {names[0]: ("../x", b"x")}, "invalid_filename"),
        ({"base_model": "a" * 5_000}, files, "invalid_value"),
    ]
    for data, sent, code in cases:
        answer = client.post("/v1/artifacts", data=data, files=sent, headers=user.headers)
        assert told(answer) == (400, code), (data, answer.text)


def test_a_key_that_would_spend_beyond_its_budget_or_outlive_its_maker(client: TestClient, user: Signed) -> None:
    body: dict[str, Any] = {"name": "x", "scopes": ["inference", "keys"], "budget_micros": 5}
    assert told(client.post("/v1/api_keys", json=body, headers=user.headers)) == (400, "invalid_value")
    brief = body | {"budget_micros": None, "expires_at": 4_000_000_000}
    maker = client.post("/v1/api_keys", json=brief, headers=user.headers).json()
    headers = {"authorization": f"Bearer {maker['secret']}"}
    made = client.post("/v1/api_keys", json={"name": "y", "scopes": ["inference"]}, headers=headers).json()
    assert made["expires_at"] == 4_000_000_000
