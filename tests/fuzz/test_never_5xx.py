"""Whatever a signed-in client sends to any route: never a 5xx, and every refusal in OpenAI's envelope."""

import json
import os
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.doors import DOORS, World
from tests.fuzz.conftest import SEED
from tests.fuzz.requests import fields_of, requests

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or 150)
# What a caller owns is deleted last.
ORDER = sorted(DOORS, key=lambda door: door[0] == "DELETE")


@pytest.fixture(scope="session")
def schema(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.client.get("/openapi.json").json()
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("door", ORDER, ids=[" ".join(door) for door in ORDER])
def test_no_request_breaks_a_door(world: World, schema: dict[str, Any], door: tuple[str, str]) -> None:
    fields = fields_of(schema, door)

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(st.data())
    def send(data: st.DataObject) -> None:
        check(world.client.request(**bounded(door, data.draw(requests(world, door, fields)))))

    send()


def bounded(door: tuple[str, str], request: dict[str, Any]) -> dict[str, Any]:
    """A call that is admitted ends soon."""
    if door[1].endswith("completions") and b"max_tokens" not in request["content"]:
        try:
            body = json.loads(request["content"])
        except ValueError:
            return request
        if isinstance(body, dict):
            return request | {"content": json.dumps(body | {"max_tokens": 2}).encode()}
    return request


def check(answer: httpx.Response) -> None:
    assert answer.status_code < 500, (answer.status_code, answer.text[:500])
    assert answer.headers["x-request-id"]
    if answer.is_client_error:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}, answer.text
        assert all(isinstance(error[name], str) for name in ("message", "type", "code")), answer.text
    elif "text/event-stream" in answer.headers.get("content-type", ""):
        assert '"error"' not in answer.text or answer.text.endswith("data: [DONE]\n\n"), answer.text[-500:]
