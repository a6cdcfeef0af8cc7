"""A file is counted in the tokens of the base that is trained, whichever base it was first read with."""

import json
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient
from transformers import AutoModelForCausalLM

from app.database import transaction
from app.settings import get_settings
from app.variants.tables import BaseModel
from models_registry.store import open_store
from tests.conftest import Base, Signed
from tests.fine_tuning.conftest import Create, Upload, chat_rows
from tests.tiny_base import tiny_base
from workers.fine_tuning.task import JobRunner
from workers.fine_tuning.validate_file import count_file, validate_file
from workers.model_import.convert import save

SignUp = Callable[..., Signed]
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"


@pytest.fixture(scope="module")
def other(base: Base, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base that knows few words, so that the same text has more tokens, and whose template takes no system turns."""
    folder = tiny_base(tmp_path_factory.mktemp("other"), vocabulary=262)
    facts = save(AutoModelForCausalLM.from_pretrained(folder), folder, "unknown")
    template = folder / "chat_template.jinja"
    template.write_text(NO_SYSTEM + template.read_text())
    digest = open_store(get_settings().artifacts_url).put_folder(folder, "base", {}).digest
    known = {"id": f"other-{secrets.token_hex(4)}", "source": "none", "status": "ready", "digest": digest}
    prices = {f"{what}_micros_per_million_tokens": 500_000 for what in ("input", "output", "training")}
    with transaction() as tx:
        row = BaseModel(**known, **prices, **facts.model_dump())
        tx.add(row)
        return row.id


def post(client: TestClient, user: Signed, what: str, body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = client.post(f"/v1/fine_tuning/{what}", json=body, headers=user.headers).json()
    return found


def test_a_job_is_priced_and_charged_in_the_tokens_of_its_own_base(
    client: TestClient, signed_up: SignUp, upload: Upload, base: Base, other: str, runner: JobRunner
) -> None:
    user = signed_up()
    rows = chat_rows(24)
    training, held_out = upload(user, rows), upload(user, chat_rows(4, 100))
    validate_file(training)
    body: dict[str, Any] = {"model": other, "training_file": training, "hyperparameters": {"n_epochs": 2}}
    # The same body as for a job, whatever in it does not matter to the price.
    body |= {"validation_file": held_out, "suffix": "x", "seed": 3, "metadata": {"a": "b"}, "priority": 1}
    bound = post(client, user, "estimate", body)
    assert bound["trained_tokens"] == 2 * len(rows)
    for _ in range(2):
        count_file(training, other)
    told = post(client, user, "estimate", body)
    usual = post(client, user, "estimate", body | {"model": base.id})
    assert usual["trained_tokens"] < told["trained_tokens"] < bound["trained_tokens"]
    job = post(client, user, "jobs", body)
    assert job["held_micros"] == told["price_micros"]
    runner.wake()
    done = client.get(f"/v1/fine_tuning/jobs/{job['id']}", headers=user.headers).json()
    assert done["status"] == "succeeded", done["error"]
    assert (done["trained_tokens"], done["charge_micros"]) == (told["trained_tokens"], told["price_micros"])


def test_a_job_counts_for_itself_where_nobody_has_and_names_the_row_that_its_base_refuses(
    client: TestClient, signed_up: SignUp, upload: Upload, create: Create, other: str, runner: JobRunner
) -> None:
    user = signed_up()
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    training = upload(user, chat_rows(2) + b"\n" + json.dumps({"messages": turns}).encode())
    validate_file(training)
    job = create(user, model=other, training_file=training)
    runner.wake()
    failed = client.get(f"/v1/fine_tuning/jobs/{job['id']}", headers=user.headers).json()
    assert failed["error"]["code"] == "invalid_training_file"
    assert "line 3" in failed["error"]["message"]
    usual = create(user, training_file=training)
    assert usual["status"] == "queued"
    client.post(f"/v1/fine_tuning/jobs/{usual['id']}/cancel", headers=user.headers)
    again = post(client, user, "jobs", {"model": other, "training_file": training})
    assert (again["error"]["code"], again["error"]["param"]) == ("invalid_training_file", "training_file")


def test_what_a_job_would_be_refused_for_is_refused_for_its_estimate(
    client: TestClient, signed_up: SignUp, upload: Upload, base: Base
) -> None:
    user = signed_up()
    body = {"model": base.id, "training_file": upload(user, chat_rows(2))}
    for change, param in (
        ({"suffix": "a:b"}, "suffix"),
        ({"validation_file": "file-" + "0" * 26}, "validation_file"),
        ({"hyperparameters": {"keep": "best"}}, "hyperparameters.keep"),
    ):
        answers = [post(client, user, what, body | change) for what in ("jobs", "estimate")]
        assert answers[0]["error"]["param"] == param
        assert answers[0] == answers[1]
