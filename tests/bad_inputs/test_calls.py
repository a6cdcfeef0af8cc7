"""Calls that cannot be answered: the reason, and no money held."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from app.settings import get_settings
from tests.bad_inputs.answers import MEGABYTE, told
from tests.billing.calls import call_of, opened
from tests.conftest import Base, Services, Signed
from tests.factories import new_listing, new_member

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
