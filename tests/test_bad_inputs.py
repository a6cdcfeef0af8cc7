"""THREATS' bad inputs, one row each: what is sent, and the status and code that come back.

Those about money, files, adapters and jobs that need more than a request stand with their parts: tests/billing,
tests/files, tests/variants, tests/fine_tuning.
"""

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from app.settings import get_settings
from tests.billing.calls import call_of, opened
from tests.conftest import Base, Services, Signed
from tests.factories import listing_body, new_listing, new_member

MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def user(services: Services) -> Signed:
    from app.database import transaction

    with transaction() as tx:
        return new_member(tx)


def told(answer: Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def post(client: TestClient, user: Signed, path: str, body: bytes, **headers: str) -> Response:
    kind = {"content-type": "application/json"} | user.headers | headers
    return client.post(path, content=body, headers=kind)


BODIES: list[tuple[bytes, int, str]] = [
    (b'{"rating": 5', 400, "invalid_json"),
    (b"[" * 10_000 + b"]" * 10_000, 400, "invalid_json"),
    (b'{"a":' * 200 + b"1" + b"}" * 200, 400, "invalid_json"),
    (b'{"amount_micros": 1, "amount_micros": 2}', 400, "invalid_json"),
    (b'{"gateway": {"a": 1, "a": 2}}', 400, "invalid_json"),
    (b'\xff\xfe{\0"\0a\0"\0:\x001\0}\0', 400, "invalid_json"),
    (b'\xef\xbb\xbf{"amount_micros": 1}', 400, "invalid_json"),
    (b'{"gateway": "\xed\xa0\x80"}', 400, "invalid_json"),
    (b'{"gateway": "\\u0000"}', 400, "invalid_value"),
    (b'{"gateway": "\\ud83d"}', 400, "invalid_value"),
    (b'{"amount_micros": NaN}', 400, "invalid_value"),
    (b'{"amount_micros": -Infinity}', 400, "invalid_value"),
    (b'{"amount_micros": 1e400}', 400, "invalid_value"),
    (b'{"amount_micros": ' + b"9" * 5000 + b"}", 400, "invalid_value"),
    (b"[]", 400, "invalid_value"),
    (b"", 400, "missing_required_parameter"),
]


@pytest.mark.parametrize(("body", "status", "code"), BODIES, ids=[str(each[0][:24]) for each in BODIES])
def test_what_is_no_sound_json(client: TestClient, user: Signed, body: bytes, status: int, code: str) -> None:
    assert told(post(client, user, "/v1/wallet/top_ups", body)) == (status, code)


@pytest.mark.parametrize(
    "kind", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_another_kind_of_body(client: TestClient, user: Signed, kind: str) -> None:
    answer = post(client, user, "/v1/wallet/top_ups", b'{"amount_micros": 1}', **{"content-type": kind})
    assert told(answer) == (415, "unsupported_media_type")


def test_a_compressed_body(client: TestClient, user: Signed) -> None:
    answer = post(client, user, "/v1/wallet/top_ups", b"{}", **{"content-encoding": "gzip"})
    assert told(answer) == (415, "unsupported_encoding")


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_a_body_too_large_whether_it_says_so_or_comes_in_chunks(client: TestClient, user: Signed, kind: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(5):
            yield b" " * MEGABYTE

    headers = user.headers | {"content-type": kind}
    for body in (b" " * 5 * MEGABYTE, chunks()):
        answer = client.post("/v1/wallet/top_ups", content=body, headers=headers)
        assert told(answer) == (413, "request_too_large")


def test_an_upload_too_large(client: TestClient, user: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused while it comes in, before anything is kept: the guard of this app allows a megabyte."""
    from app.main import create_app

    monkeypatch.setenv("GPTSTORE_API__MAX_UPLOAD_BYTES", str(MEGABYTE))
    get_settings.cache_clear()
    with TestClient(create_app()) as small:
        monkeypatch.undo()
        get_settings.cache_clear()
        boundary = b"--x\r\ncontent-disposition: form-data; name=file; filename=a\r\n\r\n"
        for path in ("/v1/files", "/v1/artifacts"):
            body = (piece for piece in [boundary, *[b"x" * MEGABYTE] * 3])
            headers = user.headers | {"content-type": "multipart/form-data; boundary=x"}
            assert told(small.post(path, content=body, headers=headers)) == (413, "request_too_large")


@pytest.mark.parametrize("name", ["evil.example", "localhost.evil.example:80", ""])
def test_a_foreign_host_name(client: TestClient, name: str) -> None:
    assert told(client.get("/v1/listings", headers={"host": name})) == (400, "invalid_host")


def test_a_probe_may_name_the_machine_as_it_likes(client: TestClient) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert client.get(path, headers={"host": "10.0.0.7:8000"}).status_code == 200


def test_a_key_in_the_query_string_is_no_key(client: TestClient, user: Signed) -> None:
    for name in ("key", "api_key", "access_token"):
        assert told(client.get("/v1/me", params={name: user.key})) == (401, "invalid_api_key")


def test_a_burst_of_guesses_is_slowed_and_told_when_to_come_back(client: TestClient) -> None:
    guess = f"gpts_{secrets.token_hex(6)}"
    limit = get_settings().api.failed_logins_per_minute
    answers = [client.get("/v1/me", headers={"authorization": f"Bearer {guess}_{each}"}) for each in range(limit + 1)]
    assert {told(answer) for answer in answers[:limit]} == {(401, "invalid_api_key")}
    assert told(answers[limit]) == (429, "rate_limit_exceeded")
    assert 0 < int(answers[limit].headers["retry-after"]) <= 60


HI = [{"role": "user", "content": "Hi"}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}]}]
CALLS: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "nothing"}, 404, "model_not_found"),
    ({"model": "ft:tiny-llama:somebody::12345678"}, 404, "model_not_found"),
    ({"model": "some/thing@0"}, 404, "model_not_found"),
    ({"messages": []}, 400, "invalid_value"),
    ({"messages": [{"role": "king", "content": "x"}]}, 400, "invalid_value"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "invalid_value"),
    ({"messages": IMAGE}, 400, "unsupported_content"),
    ({"n": 0}, 400, "invalid_value"),
    ({"n": -1}, 400, "invalid_value"),
    ({"n": 1_000_000}, 400, "invalid_value"),
    ({"max_tokens": 0}, 400, "invalid_value"),
    ({"max_tokens": -1}, 400, "invalid_value"),
    ({"max_tokens": "5"}, 400, "invalid_value"),
    ({"temperature": -1}, 400, "invalid_value"),
    ({"temperature": 2.1}, 400, "invalid_value"),
    ({"top_p": 1.1}, 400, "invalid_value"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, "invalid_value"),
    ({"stop": [""]}, 400, "invalid_value"),
    ({"logit_bias": {"384": 1}}, 400, "invalid_value"),
    ({"logit_bias": {"-1": 1}}, 400, "invalid_value"),
    ({"logit_bias": {"1": 101}}, 400, "invalid_value"),
    ({"top_logprobs": 21}, 400, "invalid_value"),
    ({"max_tokens": 600}, 400, "context_length_exceeded"),
    ({"messages": [{"role": "user", "content": "long " * 2_000}]}, 400, "context_length_exceeded"),
    ({"messages": [{"role": "user", "content": "x" * MEGABYTE}]}, 400, "context_length_exceeded"),
    ({"chat_template": "{{ 1 }}"}, 400, "unknown_parameter"),
    ({"trust_remote_code": True}, 400, "unknown_parameter"),
    ({"api_base": "http://evil.example"}, 400, "unknown_parameter"),
]


@pytest.mark.parametrize(("change", "status", "code"), CALLS, ids=[str(each[0])[:60] for each in CALLS])
def test_a_call_that_cannot_be_answered_holds_no_money(
    client: TestClient, user: Signed, base: Base, change: dict[str, Any], status: int, code: str
) -> None:
    body = {"model": base.id, "messages": HI, "max_tokens": 4} | change
    assert told(client.post("/v1/chat/completions", json=body, headers=user.headers)) == (status, code)
    assert client.get("/v1/wallet", headers=user.headers).json()["held_micros"] == 0


@pytest.mark.parametrize("prompt", ["", [], [384], [-1], ["a", "b"], [[1], [2]], None, 5])
def test_a_completion_without_a_sound_prompt(client: TestClient, user: Signed, base: Base, prompt: object) -> None:
    body = {"model": base.id, "prompt": prompt, "max_tokens": 4}
    assert told(client.post("/v1/completions", json=body, headers=user.headers)) == (400, "invalid_value")


def test_a_call_without_money_or_without_the_purchase(client: TestClient, base: Base, services: Services) -> None:
    from app.database import transaction

    with transaction() as tx:
        poor, seller = new_member(tx, 0), new_member(tx)
        listing = new_listing(tx, seller.account_id)
    body = {"model": base.id, "messages": HI}
    answer = client.post("/v1/chat/completions", json=body, headers=poor.headers)
    assert told(answer) == (429, "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"
    body["model"] = f"{seller.handle}/{listing.name}"
    answer = client.post("/v1/chat/completions", json=body, headers=poor.headers)
    assert told(answer) == (403, "model_not_purchased")


def test_a_full_queue_holds_nothing_and_says_when_to_come_back(
    client: TestClient, base: Base, services: Services
) -> None:
    from app.billing.metering import release_call
    from app.database import transaction

    most = get_settings().generation.max_queued_per_account
    with transaction() as tx:
        busy = new_member(tx)
        target = call_of(new_listing(tx, busy.account_id), input_price=50_000, output_price=150_000)
        calls = [opened(tx, busy.account_id, target, prompt=1, most=1, lease=600) for _ in range(most)]
    held = client.get("/v1/wallet", headers=busy.headers).json()
    body = {"model": base.id, "messages": HI, "max_tokens": 4}
    answer = client.post("/v1/chat/completions", json=body, headers=busy.headers)
    assert told(answer) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) > 0
    assert client.get("/v1/wallet", headers=busy.headers).json() == held
    with transaction() as tx:
        assert all(release_call(tx, call, 1) for call in calls)


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


CURSORS = ["/v1/files", "/v1/fine_tuning/jobs", "/v1/purchases", "/v1/wallet/entries", "/v1/listings"]
QUERIES = ["limit=-1", "limit=0", "limit=x", "limit=1000000", "after=x", "after=file-1", "after=%ED%A0%80", "after="]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("path", CURSORS)
def test_a_forged_cursor_or_limit(client: TestClient, user: Signed, path: str, query: str) -> None:
    assert told(client.get(f"{path}?{query}", headers=user.headers)) == (400, "invalid_cursor")


def test_nul_in_an_address(client: TestClient, user: Signed) -> None:
    for address in ("/v1/files/a%00b", "/v1/listings?q=%00"):
        assert told(client.get(address, headers=user.headers)) == (400, "invalid_value")


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


def test_a_defect_of_ours_has_the_requests_id_too(client: TestClient, user: Signed) -> None:
    """The only 500 that can be had on purpose: a route whose answer breaks."""
    from app.main import create_app

    api = create_app()

    @api.get("/v1/broken")
    def broken() -> None:
        raise ZeroDivisionError

    with TestClient(api, raise_server_exceptions=False) as careless:
        answer = careless.get("/v1/broken")
    assert told(answer) == (500, "internal_error")
    assert len(answer.headers["x-request-id"]) == 32
    assert "ZeroDivision" not in json.dumps(answer.json())
