"""The wallet by its doors: top-ups, entries, bad amounts, pages."""

from collections.abc import Callable, Iterator

import pytest
from starlette.testclient import TestClient

from app.database import transaction
from app.settings import get_settings
from tests.conftest import Signed
from tests.factories import new_member

SignUp = Callable[..., Signed]


def test_a_top_up_succeeds_at_once_in_the_sandbox(client: TestClient, signed_up: SignUp) -> None:
    user = signed_up()
    body = {"amount_micros": 250_000, "gateway": "sandbox"}
    answer = client.post("/v1/wallet/top_ups", json=body, headers=user.headers)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["status"], answer.json()["checkout_url"]) == ("succeeded", None)
    wallet = client.get("/v1/wallet", headers=user.headers).json()
    assert (wallet["available_micros"], wallet["held_micros"], wallet["currency"]) == (5_250_000, 0, "usd")


@pytest.mark.parametrize("amount", [-1, 0, 0.001, 2**63, 10**39, 10**12 + 1, True, "5", None, [1], {"a": 1}, 1e6])
def test_a_bad_amount_moves_nothing(client: TestClient, amount: object) -> None:
    with transaction() as tx:
        user = new_member(tx)
    answer = client.post("/v1/wallet/top_ups", json={"amount_micros": amount}, headers=user.headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_amount")
    assert answer.json()["error"]["param"] == "amount_micros"
    assert client.get("/v1/wallet", headers=user.headers).json()["available_micros"] == 5_000_000


def test_an_unknown_gateway_is_refused(client: TestClient, signed_up: SignUp) -> None:
    body = {"amount_micros": 1, "gateway": "goldsmith"}
    answer = client.post("/v1/wallet/top_ups", json=body, headers=signed_up().headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GPTSTORE_EMBEDDED", "0")
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


def test_play_money_and_the_welcome_credit_are_off_in_production(
    client: TestClient, production: None, signed_up: SignUp
) -> None:
    user = signed_up()
    answer = client.post("/v1/wallet/top_ups", json={"amount_micros": 1}, headers=user.headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    assert client.get("/v1/wallet", headers=user.headers).json()["available_micros"] == 0


def test_entries_come_in_pages_and_add_up(client: TestClient, signed_up: SignUp) -> None:
    user = signed_up()
    for amount in (1, 20, 300):
        client.post("/v1/wallet/top_ups", json={"amount_micros": amount}, headers=user.headers)
    first = client.get("/v1/wallet/entries?limit=3", headers=user.headers).json()
    assert [entry["amount_micros"] for entry in first["data"]] == [300, 20, 1]
    assert first["has_more"]
    rest = client.get(f"/v1/wallet/entries?limit=3&after={first['last_id']}", headers=user.headers).json()
    [welcome] = rest["data"]
    assert (welcome["kind"], welcome["side"], welcome["balance_after"]) == ("welcome_credit", "available", 5_000_000)
    assert not rest["has_more"]
    assert first["data"][0]["balance_after"] == 5_000_321


@pytest.mark.parametrize("query", ["after=x", "after=-1", "after=" + "9" * 30, "limit=0", "limit=-1", "limit=101"])
def test_a_forged_cursor_is_refused(client: TestClient, query: str) -> None:
    with transaction() as tx:
        user = new_member(tx)
    answer = client.get(f"/v1/wallet/entries?{query}", headers=user.headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_cursor")


def test_a_key_without_the_scope_sees_no_wallet(client: TestClient, signed_up: SignUp) -> None:
    user = signed_up()
    key = client.post("/v1/api_keys", json={"name": "f", "scopes": ["files"]}, headers=user.headers).json()["secret"]
    for method, path in [
        ("GET", "/v1/wallet"),
        ("GET", "/v1/wallet/entries"),
        ("GET", "/v1/usage"),
        ("GET", "/v1/earnings"),
        ("GET", "/v1/purchases"),
        ("POST", "/v1/wallet/top_ups"),
        ("POST", "/v1/purchases"),
    ]:
        body = {"amount_micros": 1} if path.endswith("top_ups") else {"listing": "a/b"}
        answer = client.request(
            method, path, json=body if method == "POST" else None, headers={"authorization": f"Bearer {key}"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope"), path
        unkeyed = client.request(method, path, json=body if method == "POST" else None)
        assert unkeyed.status_code == 401, path
