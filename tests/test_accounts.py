"""Joining, keys, sessions: by the doors a client uses."""

import subprocess
import sys
from collections.abc import Callable

from httpx2 import Response
from starlette.testclient import TestClient

from tests.conftest import Signed

SignUp = Callable[..., Signed]


def body(handle: str, **changes: object) -> dict[str, object]:
    return {"email": f"{handle}@example.com", "password": "long enough", "handle": handle} | changes


def test_a_newcomer_gets_an_account_a_key_and_the_welcome_credit(client: TestClient) -> None:
    answer = client.post("/v1/accounts", json=body("newcomer"))
    assert answer.status_code == 201, answer.text
    key = answer.json()["api_key"]
    assert key["secret"].startswith("gpts_")
    me = client.get("/v1/me", headers={"authorization": f"Bearer {key['secret']}"})
    assert me.json()["account"]["handle"] == "newcomer"


def test_a_taken_handle_is_refused(client: TestClient, signed_up: SignUp) -> None:
    taken = signed_up("taken")
    answer = client.post("/v1/accounts", json=body(taken.handle, email="other@example.com"))
    assert (answer.status_code, answer.json()["error"]["param"]) == (409, "handle")
    assert answer.headers["x-should-retry"] == "false"


def test_a_revoked_key_opens_nothing(client: TestClient, signed_up: SignUp) -> None:
    user = signed_up()
    new = client.post("/v1/api_keys", json={"name": "ci", "scopes": ["files"]}, headers=user.headers).json()
    headers = {"authorization": f"Bearer {new['secret']}"}
    assert client.get("/v1/me", headers=headers).json()["scopes"] == ["files"]
    assert client.get("/v1/api_keys", headers=headers).json()["error"]["code"] == "insufficient_scope"
    assert client.delete(f"/v1/api_keys/{new['id']}", headers=user.headers).json()["deleted"]
    assert client.get("/v1/me", headers=headers).json()["error"]["code"] == "invalid_api_key"


def test_a_session_reads_with_its_cookie_and_writes_only_with_its_token(
    services: object, client: TestClient, signed_up: SignUp
) -> None:
    from app.main import create_app

    user = signed_up()
    with TestClient(create_app()) as browser:
        wrong = browser.post("/v1/sessions", json={"email": user.email, "password": "wrong wrong"})
        assert wrong.json()["error"]["code"] == "invalid_credentials"
        assert browser.post("/v1/sessions", json={"email": user.email, "password": "correct horse battery"}).is_success
        assert browser.get("/v1/me").json()["account"]["handle"] == user.handle
        assert browser.post("/v1/api_keys", json={"name": "x", "scopes": ["files"]}).json()["error"]["code"] == (
            "csrf_failed"
        )


def test_every_refusal_wears_the_same_envelope(client: TestClient) -> None:
    def raw(content: bytes, kind: str = "application/json", encoding: str = "identity") -> Response:
        return client.post(
            "/v1/accounts", content=content, headers={"content-type": kind, "content-encoding": encoding}
        )

    cases = [
        (client.get("/v1/nowhere"), 404, "not_found"),
        (client.put("/v1/me"), 405, "method_not_allowed"),
        (client.get("/v1/me"), 401, "invalid_api_key"),
        (client.post("/v1/accounts", json={"is_admin": True} | body("abc")), 400, "unknown_parameter"),
        (client.post("/v1/accounts", json={}), 400, "missing_required_parameter"),
        (raw(b"{"), 400, "invalid_json"),
        (raw(b'{"a": 1, "a": 2}'), 400, "invalid_json"),
        (raw(b"{}", kind="text/plain"), 415, "unsupported_media_type"),
        (raw(b"", encoding="gzip"), 415, "unsupported_encoding"),
        (raw(b'{"a": "\\ud800"}'), 400, "invalid_value"),
    ]
    for answer, status, code in cases:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code), answer.text
        assert set(error) == {"message", "type", "param", "code"}
        assert answer.headers["x-request-id"]


def test_a_stores_passwords_cost_what_rfc_9106_recommends() -> None:
    """In a process of its own: this one hashes cheaply (conftest)."""
    code = "from app.accounts.passwords import hash_password; print(hash_password('long enough'))"
    hashed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
