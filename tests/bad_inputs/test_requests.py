import json
import secrets
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from app.settings import get_settings
from tests.bad_inputs.answers import MEGABYTE, post, told
from tests.conftest import Signed

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


CURSORS = ["/v1/files", "/v1/fine_tuning/jobs", "/v1/purchases", "/v1/wallet/entries", "/v1/listings"]
QUERIES = ["limit=-1", "limit=0", "limit=x", "limit=1000000", "after=x", "after=file-1", "after=%ED%A0%80", "after="]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("path", CURSORS)
def test_a_forged_cursor_or_limit(client: TestClient, user: Signed, path: str, query: str) -> None:
    assert told(client.get(f"{path}?{query}", headers=user.headers)) == (400, "invalid_cursor")


def test_nul_in_an_address(client: TestClient, user: Signed) -> None:
    for address in ("/v1/files/a%00b", "/v1/listings?q=%00"):
        assert told(client.get(address, headers=user.headers)) == (400, "invalid_value")


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
