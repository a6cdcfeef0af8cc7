"""Uploads of any kind, and the worker's own code run in this process (its children are real)."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.conftest import Base, Signed
from workers.datasets.task import report_file
from workers.fine_tuning.validate_file import validate_file

Json = dict[str, Any]


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def chat(question: str, answer: str, **more: Any) -> Json:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **more}


def unwrapped(body: Json) -> Json:
    """What a refusal says, or the body. A report's own `error` is a text or null."""
    error = body.get("error")
    return error if isinstance(error, dict) else body


class Owner:
    """Somebody with files."""

    def __init__(self, client: TestClient, signed: Signed) -> None:
        self.http, self.signed = client, signed

    def upload(self, content: bytes, name: str = "data.jsonl") -> Json:
        """The file as answered, or the error."""
        form = {"purpose": "fine-tune"}
        answer = self.http.post("/v1/files", files={"file": (name, content)}, data=form, headers=self.signed.headers)
        return unwrapped(answer.json())

    def validated(self, content: bytes, name: str = "data.jsonl") -> Json:
        """The report, with the file's status, once the worker has looked at it."""
        file = self.upload(content, name)
        validate_file(file["id"])
        report = self.get(f"/v1/files/{file['id']}/report")
        return {"id": file["id"], "status": report["status"], **(report["report"] or {})}

    def content(self, file_id: str) -> list[Json]:
        answer = self.http.get(f"/v1/files/{file_id}/content", headers=self.signed.headers)
        return [json.loads(line) for line in answer.text.splitlines()]

    def get(self, path: str) -> Json:
        body: Json = self.http.get(path, headers=self.signed.headers).json()
        return body

    def post(self, path: str, **body: Any) -> Json:
        return unwrapped(self.http.post(path, json=body, headers=self.signed.headers).json())

    def ask(self, file_id: str, what: str, **body: Any) -> Json:
        """A report or a cleaning once the worker has done it."""
        asked = self.post(f"/v1/files/{file_id}/{what}", **body)
        assert "id" in asked, asked
        report_file(asked["id"])
        return self.get(f"/v1/files/{file_id}/reports/{asked['id']}")


@pytest.fixture
def owner(client: TestClient, signed_up: Callable[..., Signed], base: Base) -> Owner:
    return Owner(client, signed_up("owner"))
