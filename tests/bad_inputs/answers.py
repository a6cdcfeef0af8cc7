"""What bad input is sent with, and what of the answer counts."""

from httpx2 import Response
from starlette.testclient import TestClient

from tests.conftest import Signed

MEGABYTE = 1024 * 1024


def told(answer: Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def post(client: TestClient, user: Signed, path: str, body: bytes, **headers: str) -> Response:
    kind = {"content-type": "application/json"} | user.headers | headers
    return client.post(path, content=body, headers=kind)
