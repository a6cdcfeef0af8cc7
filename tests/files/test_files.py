"""Files by the doors a client uses: OpenAI's shapes, every refusal, nothing left behind."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from starlette.testclient import TestClient

from app.settings import get_settings
from tests.conftest import Services, Signed

SignUp = Callable[..., Signed]


def rows(*answers: str) -> bytes:
    lines = [
        {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": answer}]}
        for answer in answers
    ]
    return "\n".join(json.dumps(line) for line in lines).encode()


def upload(
    client: TestClient, user: Signed, content: bytes, name: str = "data.jsonl", purpose: str = "fine-tune"
) -> tuple[int, dict[str, object]]:
    answer = client.post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose}, headers=user.headers)
    return answer.status_code, answer.json()


def blobs(services: Services) -> set[Path]:
    return {path for path in (services.data / "artifacts" / "uploads").rglob("*") if path.is_file()}


def blob(services: Services, content: bytes) -> Path:
    digest = hashlib.sha256(content).hexdigest()
    return services.data / "artifacts" / "uploads" / "blobs" / digest[:2] / digest


@pytest.fixture
def sdk(client: TestClient, signed_up: SignUp) -> Iterator[openai.OpenAI]:
    user = signed_up("sdk")
    yield openai.OpenAI(base_url="http://testserver/v1", api_key=user.key, http_client=client, max_retries=0)


def test_the_openai_sdk_uploads_lists_reads_and_deletes(sdk: openai.OpenAI) -> None:
    content = rows("first", "second")
    made = sdk.files.create(
        file=("chat.jsonl", content), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert (made.object, made.bytes, made.filename, made.purpose) == ("file", len(content), "chat.jsonl", "fine-tune")
    assert made.expires_at == made.created_at + 7200
    other = sdk.files.create(file=("notes.txt", b"notes"), purpose="user_data")
    assert [file.id for file in sdk.files.list()] == [other.id, made.id]
    assert [file.id for file in sdk.files.list(limit=1)] == [other.id, made.id]
    assert [file.id for file in sdk.files.list(purpose="fine-tune", order="asc")] == [made.id]
    assert sdk.files.retrieve(made.id) == made
    assert sdk.files.content(made.id).content == content
    assert sdk.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(made.id)


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b"\xef\xbb\xbf" + rows("a"), "line 1", "byte order mark"),
        (rows("a") + b"\n{nonsense", "line 2", "not valid JSON"),
        (rows("a") + b"\n[1]", "line 2", "not a JSON object"),
        (rows("a", "b") + b'\n{"prompt": "x"}', "line 3", "messages"),
        (rows("a") + b'\n{"messages": []}', "line 2", "messages"),
        (b'{"messages": ["\xff"]}', "line 1", "UTF-8"),
        (rows("a") + b"\n" + b"[" * 100_000, "line 2", "not valid JSON"),
        (rows("x" * 1_048_576), "line 1", "longer"),
        (b"\n \n", "no rows", ""),
        (b"", "no rows", ""),
    ],
)
def test_a_bad_training_file_is_refused_with_its_line(
    services: Services, client: TestClient, signed_up: SignUp, content: bytes, line: str, what: str
) -> None:
    status, body = upload(client, signed_up(), content)
    error = body["error"]
    assert isinstance(error, dict)
    assert (status, error["code"]) == (400, "invalid_training_file")
    assert line in error["message"]
    assert what in error["message"]
    assert not blob(services, content).exists()


@pytest.mark.parametrize("name", ["../etc/passwd", "/etc/passwd", "a\\b", "a\0b", "..", "n" * 300])
def test_a_name_that_is_not_a_name_is_refused(client: TestClient, signed_up: SignUp, name: str) -> None:
    status, body = upload(client, signed_up(), b"x", name=name, purpose="user_data")
    assert (status, body["error"]["code"]) == (400, "invalid_filename")  # type: ignore[index]


def test_form_mistakes_are_named(client: TestClient, signed_up: SignUp) -> None:
    user = signed_up()
    file = {"file": ("a.txt", b"x")}
    cases = [
        ({"data": {"purpose": "user_data"}, "files": {"other": ("a", b"x")}}, "unknown_parameter", "other"),
        ({"data": {"purpose": "user_data", "mode": "x"}, "files": file}, "unknown_parameter", "mode"),
        ({"data": {"purpose": "fishing"}, "files": file}, "invalid_value", "purpose"),
        ({"files": file}, "missing_required_parameter", "purpose"),
        ({"data": {"purpose": "user_data"}, "files": {"file": (None, b"x")}}, "missing_required_parameter", "file"),
        (
            {"data": {"purpose": "user_data", "expires_after[anchor]": "created_at"}, "files": file},
            "invalid_value",
            "expires_after[seconds]",
        ),
    ]
    for request, code, param in cases:
        error = client.post("/v1/files", headers=user.headers, **request).json()["error"]  # type: ignore[arg-type]
        assert (error["code"], error["param"]) == (code, param)
    assert client.post("/v1/files", json={}, headers=user.headers).json()["error"]["code"] == "unsupported_media_type"


def test_files_of_others_read_as_unknown(client: TestClient, signed_up: SignUp) -> None:
    owner, stranger = signed_up("owner"), signed_up("stranger")
    file_id = upload(client, owner, rows("mine"))[1]["id"]
    for path in ("", "/content", "/report"):
        foreign = client.get(f"/v1/files/{file_id}{path}", headers=stranger.headers)
        unknown = client.get(f"/v1/files/file-{'0' * 26}{path}", headers=stranger.headers)
        assert foreign.status_code == unknown.status_code == 404
        assert foreign.json()["error"]["code"] == unknown.json()["error"]["code"]
    assert client.delete(f"/v1/files/{file_id}", headers=stranger.headers).status_code == 404
    assert client.get("/v1/files", headers=stranger.headers).json()["data"] == []
    assert client.get("/v1/files?after=forged", headers=owner.headers).json()["error"]["code"] == "invalid_cursor"
    assert client.get("/v1/files?limit=-1", headers=owner.headers).json()["error"]["code"] == "invalid_cursor"


def test_shared_bytes_stay_until_the_last_file_goes(services: Services, client: TestClient, signed_up: SignUp) -> None:
    content = rows("shared by two")
    one, two = signed_up("one"), signed_up("two")
    first, second = (upload(client, user, content)[1]["id"] for user in (one, two))
    client.delete(f"/v1/files/{first}", headers=one.headers)
    assert client.get(f"/v1/files/{second}/content", headers=two.headers).content == content
    client.delete(f"/v1/files/{second}", headers=two.headers)
    assert not blob(services, content).exists()


def test_quota_and_a_nearly_full_disk_leave_nothing_behind(
    services: Services, client: TestClient, signed_up: SignUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, before = signed_up(), blobs(services)
    limits = [("GPTSTORE_API__ACCOUNT_QUOTA_BYTES", "10", 413), ("GPTSTORE_API__MIN_FREE_DISK_BYTES", str(2**60), 507)]
    for name, value, status in limits:
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            get_settings.cache_clear()
            assert upload(client, user, b"more than ten bytes", purpose="user_data")[0] == status
        get_settings.cache_clear()
    assert blobs(services) == before
    assert upload(client, user, b"more than ten bytes", purpose="user_data")[0] == 200


def test_a_key_without_the_scope_uploads_nothing(client: TestClient, signed_up: SignUp) -> None:
    user = signed_up()
    key = client.post("/v1/api_keys", json={"name": "k", "scopes": ["wallet"]}, headers=user.headers).json()
    weak = Signed(user.account_id, user.handle, user.email, key["secret"])
    assert upload(client, weak, b"x")[1]["error"]["code"] == "insufficient_scope"  # type: ignore[index]
