"""One effect per key: replays byte for byte, other bodies refused, refusals tried again."""

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from httpx2 import Response
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from app.database import transaction, utc_now
from app.idempotency import IdempotencyRecord, lock_number
from tests.conftest import Signed
from tests.factories import listing_body, new_account, new_listing, new_variant

SignUp = Callable[..., Signed]


def top_up(client: TestClient, user: Signed, key: str, amount: object = 1_000_000) -> Response:
    headers = user.headers | {"idempotency-key": key}
    return client.post("/v1/wallet/top_ups", json={"amount_micros": amount}, headers=headers)


def available(client: TestClient, user: Signed) -> int:
    return int(client.get("/v1/wallet", headers=user.headers).json()["available_micros"])


def test_a_repeated_request_is_answered_byte_for_byte_and_done_once(client: TestClient, signed_up: SignUp) -> None:
    user, key = signed_up(), secrets.token_hex(8)
    before = available(client, user)
    first, second = top_up(client, user, key), top_up(client, user, key)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.content == second.content
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert available(client, user) == before + 1_000_000


def test_without_a_key_each_request_counts(client: TestClient, signed_up: SignUp) -> None:
    user = signed_up()
    before = available(client, user)
    for _ in range(2):
        client.post("/v1/wallet/top_ups", json={"amount_micros": 5}, headers=user.headers)
    assert available(client, user) == before + 10


def test_a_key_belongs_to_one_body_one_route_and_one_account(client: TestClient, signed_up: SignUp) -> None:
    user, other, key = signed_up(), signed_up(), secrets.token_hex(8)
    assert top_up(client, user, key).status_code == 201
    reused = top_up(client, user, key, 2_000_000)
    assert (reused.status_code, reused.json()["error"]["code"]) == (422, "idempotency_key_reused")
    headers = user.headers | {"idempotency-key": key}
    elsewhere = client.post("/v1/purchases", json={"listing": "a/b"}, headers=headers)
    assert elsewhere.json()["error"]["code"] == "idempotency_key_reused"
    assert "idempotency-replayed" not in top_up(client, other, key).headers


def test_a_refusal_is_evaluated_again(client: TestClient, signed_up: SignUp) -> None:
    with transaction() as tx:
        seller = new_account(tx)
        listing = new_listing(tx, seller.id, access=6_000_000)
    user, key = signed_up(), secrets.token_hex(8)
    headers = user.headers | {"idempotency-key": key}
    body = {"listing": f"{seller.handle}/{listing.name}", "expected_price_micros": 6_000_000}
    poor = client.post("/v1/purchases", json=body, headers=headers)
    assert (poor.status_code, poor.json()["error"]["code"]) == (402, "insufficient_funds")
    assert top_up(client, user, secrets.token_hex(8)).status_code == 201
    assert client.post("/v1/purchases", json=body, headers=headers).status_code == 201
    assert client.post("/v1/purchases", json=body, headers=headers).status_code == 201
    assert available(client, user) == 0


def test_many_copies_at_once_have_one_effect_and_one_answer(client: TestClient, signed_up: SignUp) -> None:
    user, key = signed_up(), secrets.token_hex(8)
    before = available(client, user)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: top_up(client, user, key), range(32)))
    refused = [answer for answer in answers if answer.status_code != 201]
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in refused} <= {
        (409, "idempotency_in_progress")
    }
    assert all("x-should-retry" not in answer.headers for answer in refused)
    assert len({answer.content for answer in answers if answer.status_code == 201}) == 1
    assert available(client, user) == before + 1_000_000


def test_while_the_first_request_is_under_way_its_copy_is_told_to_wait(client: TestClient, signed_up: SignUp) -> None:
    user, key = signed_up(), secrets.token_hex(8)
    with transaction() as tx:
        tx.scalar(select(func.pg_advisory_xact_lock(lock_number(user.account_id, key))))
        copy = top_up(client, user, key)
        assert (copy.status_code, copy.json()["error"]["code"]) == (409, "idempotency_in_progress")
        assert copy.headers["retry-after"] == "1"
    assert top_up(client, user, key).status_code == 201


def test_a_key_is_forgotten_after_a_day(client: TestClient, signed_up: SignUp) -> None:
    user, key = signed_up(), secrets.token_hex(8)
    first = top_up(client, user, key)
    with transaction() as tx:
        record = update(IdempotencyRecord).where(IdempotencyRecord.key == key)
        tx.execute(record.values(created_at=utc_now() - timedelta(hours=25)))
    later = top_up(client, user, key, 7)
    assert later.status_code == 201
    assert later.content != first.content


def test_a_listing_is_created_once_per_key(client: TestClient, signed_up: SignUp) -> None:
    user = signed_up("seller")
    with transaction() as tx:
        body = listing_body(new_variant(tx, user.account_id).model)
    headers = user.headers | {"idempotency-key": secrets.token_hex(8)}
    first, second = (client.post("/v1/listings", json=body, headers=headers) for _ in range(2))
    assert first.status_code == 201, first.text
    assert first.content == second.content


def test_a_key_too_long_is_refused(client: TestClient, signed_up: SignUp) -> None:
    answer = top_up(client, signed_up(), "k" * 256)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
