"""Jobs from the client's first call to the model they end in, through the real recipe in a child process."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from app.billing.ledger import verify
from app.database import transaction
from app.fine_tuning.rules import Hyperparameters, looked_tokens, resolve
from tests.conftest import Base, Signed
from tests.fine_tuning.conftest import Create, Upload, chat_rows
from tests.fine_tuning.runs import row_of
from workers.fine_tuning.task import JobRunner
from workers.fine_tuning.validate_file import validate_file

# Each change alone is allowed; together they make more than two thousand million parameters of the tiny base.
WIDER = [{"type": "widen_mlp", "width": width} for width in (384, 1536, 6144, 24_576, 65_536)]
GROWN: list[dict[str, Any]] = [*WIDER, *[{"type": "repeat_layers", "layers": [0] * 64}] * 3]
# Of a base with two layers, 96 wide within, that knows `<|im_end|>`.
IMPOSSIBLE: list[list[dict[str, Any]]] = [
    [{"type": "repeat_layers", "layers": [2]}],
    [{"type": "remove_layers", "layers": [0, 1]}],
    [{"type": "remove_layers", "layers": [0]}, {"type": "repeat_layers", "layers": [1]}],
    [{"type": "widen_mlp", "width": 96}],
    [{"type": "widen_mlp", "width": 385}],
    [{"type": "extend_vocabulary", "tokens": ["<|im_end|>"]}],
    [{"type": "extend_vocabulary", "tokens": ["<a>"]}, {"type": "extend_vocabulary", "tokens": ["<a>"]}],
]
SignUp = Callable[..., Signed]


def changing(*changes: dict[str, Any]) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"model_changes": list(changes)}}


def wallet(user: Signed) -> tuple[int, int]:
    from app.billing.wallet import read_wallet

    with transaction() as tx:
        row = read_wallet(tx, user.account_id)
        return row.available_micros, row.held_micros


def test_a_job_becomes_a_model_and_is_charged_once(
    client: TestClient, signed_up: SignUp, upload: Upload, base: Base, runner: JobRunner
) -> None:
    user = signed_up("trainer")
    sdk = openai.OpenAI(base_url="http://testserver/v1", api_key=user.key, http_client=client, max_retries=0)
    training, held_out = upload(user, chat_rows(24)), upload(user, chat_rows(4, 100))
    before = wallet(user)
    job = sdk.fine_tuning.jobs.create(
        model=base.id,
        training_file=training,
        validation_file=held_out,
        suffix="numbers",
        seed=7,
        metadata={"team": "blue"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
    )
    assert (job.status, job.object, job.seed) == ("validating_files", "fine_tuning.job", 7)
    held = wallet(user)[1]
    assert held > 0
    runner.wake()
    done = sdk.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded", done.error
    assert done.fine_tuned_model is not None
    assert done.fine_tuned_model.startswith(f"ft:{base.id}:{user.handle}:numbers:")
    report = client.get(f"/v1/files/{training}/report", headers=user.headers).json()["report"]
    assert done.trained_tokens == 2 * report["tokens"]
    assert (done.hyperparameters.n_epochs, done.hyperparameters.batch_size) == (2, 4)
    charge = client.get(f"/v1/fine_tuning/jobs/{job.id}", headers=user.headers).json()["charge_micros"]
    assert charge == -(-2 * report["tokens"] * 500_000 // 1_000_000) <= held
    assert wallet(user) == (before[0] - charge, 0)
    events = list(sdk.fine_tuning.jobs.list_events(job.id, limit=5))
    steps = [event.data["step"] for event in events if event.type == "metrics"]  # type: ignore[index]
    assert steps == list(range(12, 0, -1))
    assert events[0].message == "The job has successfully completed"
    assert events[-1].message == f"Created fine-tuning job: {job.id}"
    checkpoints = list(sdk.fine_tuning.jobs.checkpoints.list(job.id))
    assert [each.step_number for each in checkpoints] == [12, 6]
    assert checkpoints[0].fine_tuned_model_checkpoint == done.fine_tuned_model
    assert checkpoints[1].fine_tuned_model_checkpoint == f"{done.fine_tuned_model}:ckpt-step-6"
    assert sdk.models.retrieve(checkpoints[1].fine_tuned_model_checkpoint).owned_by == user.handle
    assert checkpoints[0].metrics.full_valid_loss is not None
    held_out_tokens = client.get(f"/v1/files/{held_out}/report", headers=user.headers).json()["report"]["tokens"]
    terms = resolve(Hyperparameters(n_epochs=2, batch_size=4), 24)
    looked = row_of(job.id).result["timing"]["looked_tokens"]
    assert looked == looked_tokens(terms, 12, held_out_tokens, 4) == 3 * held_out_tokens
    csv = sdk.files.content(done.result_files[0]).text.splitlines()
    assert csv[0].startswith("step,train_loss")
    assert len(csv) == 13
    assert [each.id for each in sdk.fine_tuning.jobs.list(metadata={"team": "blue"})] == [job.id]
    assert list(sdk.fine_tuning.jobs.list(metadata={"team": "red"})) == []


def test_a_job_goes_on_from_an_own_model(
    client: TestClient, signed_up: SignUp, upload: Upload, create: Create, runner: JobRunner
) -> None:
    user = signed_up()
    training = upload(user, chat_rows(8))
    validate_file(training)
    first = create(user, training_file=training, hyperparameters={"n_epochs": 1, "rank": 4})
    assert first["status"] == "queued"
    runner.wake()
    parent = client.get(f"/v1/fine_tuning/jobs/{first['id']}", headers=user.headers).json()["fine_tuned_model"]
    second = create(user, model=parent, training_file=training, hyperparameters={"n_epochs": 1})
    runner.wake()
    done = client.get(f"/v1/fine_tuning/jobs/{second['id']}", headers=user.headers).json()
    assert (done["status"], done["model"]) == ("succeeded", parent)
    stranger = client.post(
        "/v1/fine_tuning/jobs", json={"model": parent, "training_file": training}, headers=signed_up().headers
    )
    assert stranger.json()["error"]["code"] == "model_not_found"


def test_a_file_with_bad_rows_fails_its_job_by_line_and_costs_nothing(
    client: TestClient, signed_up: SignUp, upload: Upload, create: Create, runner: JobRunner
) -> None:
    user = signed_up()
    before = wallet(user)
    training = upload(user, chat_rows(2) + b'\n{"messages": [{"role": "robot", "content": "x"}]}')
    job = create(user, training_file=training)
    assert client.delete(f"/v1/files/{training}", headers=user.headers).json()["error"]["code"] == "in_use"
    runner.wake()
    failed = client.get(f"/v1/fine_tuning/jobs/{job['id']}", headers=user.headers).json()
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "invalid_training_file"
    assert "line 3" in failed["error"]["message"]
    assert wallet(user) == before
    again = client.post(
        "/v1/fine_tuning/jobs", json={"model": job["model"], "training_file": training}, headers=user.headers
    )
    assert (again.status_code, again.json()["error"]["code"]) == (400, "invalid_training_file")
    assert client.delete(f"/v1/files/{training}", headers=user.headers).json()["deleted"]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"hyperparameters": {"n_epochs": 1_000_000}}, "invalid_hyperparameter", "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": 0}}, "invalid_hyperparameter", "hyperparameters.batch_size"),
        ({"hyperparameters": {"n_epochs": True}}, "invalid_hyperparameter", "hyperparameters.n_epochs"),
        (
            {"hyperparameters": {"learning_rate_multiplier": -1}},
            "invalid_hyperparameter",
            "hyperparameters.learning_rate_multiplier",
        ),
        ({"hyperparameters": {"rank": 65}}, "invalid_hyperparameter", "hyperparameters.rank"),
        ({"hyperparameters": {"dropout": 1}}, "invalid_hyperparameter", "hyperparameters.dropout"),
        ({"method": {"type": "reinforcement"}}, "invalid_value", "method.type"),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": -1}}}},
            "invalid_hyperparameter",
            "method.dpo.hyperparameters.beta",
        ),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"loss_on": "x"}}}},
            "invalid_hyperparameter",
            "method.supervised.hyperparameters.loss_on",
        ),
        (
            {"method": {"type": "pretraining", "pretraining": {"hyperparameters": {"width": 100, "heads": 3}}}},
            "invalid_hyperparameter",
            "method.pretraining.hyperparameters.width",
        ),
        (
            {"method": {"type": "pretraining", "pretraining": {"hyperparameters": {"width": 4096, "layers": 48}}}},
            "invalid_hyperparameter",
            "method.pretraining.hyperparameters.layers",
        ),
        (
            {"method": {"type": "dpo", "dpo": {"model_changes": [{"type": "widen_mlp", "width": 512}]}}},
            "invalid_value",
            "method.dpo",
        ),
        (
            {"method": {"type": "supervised", "supervised": {"model_changes": [{"type": "melt"}]}}},
            "invalid_value",
            "method.supervised.model_changes",
        ),
        (
            {"method": {"type": "supervised", "supervised": {"model_changes": GROWN}}},
            "invalid_value",
            "method.supervised.model_changes",
        ),
        *[({"method": changing(*each)}, "invalid_value", "method.supervised.model_changes") for each in IMPOSSIBLE],
        ({"suffix": "a:b"}, "invalid_value", "suffix"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "invalid_value", "metadata"),
        ({"model": "gpt-5"}, "model_not_found", "model"),
        ({"training_file": "file-" + "0" * 26}, "not_found", "training_file"),
        ({"trust_remote_code": True}, "unknown_parameter", "trust_remote_code"),
    ],
)
def test_a_wrong_request_is_refused_by_name(
    client: TestClient, signed_up: SignUp, upload: Upload, base: Base, change: dict[str, object], code: str, param: str
) -> None:
    user = signed_up()
    body = {"model": base.id, "training_file": upload(user, chat_rows(1))} | change
    error = client.post("/v1/fine_tuning/jobs", json=body, headers=user.headers).json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert wallet(user)[1] == 0


def test_limits_of_an_account_and_repeats_of_a_key(
    client: TestClient, signed_up: SignUp, upload: Upload, base: Base
) -> None:
    user = signed_up()
    body = {"model": base.id, "training_file": upload(user, chat_rows(1))}
    headers = user.headers | {"idempotency-key": "train-once"}
    first, again = (client.post("/v1/fine_tuning/jobs", json=body, headers=headers) for _ in range(2))
    assert first.content == again.content
    others = [client.post("/v1/fine_tuning/jobs", json=body, headers=user.headers) for _ in range(3)]
    assert [answer.status_code for answer in others] == [200, 200, 429]
    jobs = [job["id"] for job in client.get("/v1/fine_tuning/jobs", headers=user.headers).json()["data"]]
    assert len(jobs) == 3
    for job in jobs:
        cancelled = client.post(f"/v1/fine_tuning/jobs/{job}/cancel", headers=user.headers).json()
        assert cancelled["status"] == "cancelled"
    refused = client.post(f"/v1/fine_tuning/jobs/{jobs[0]}/cancel", headers=user.headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_not_cancellable")
    assert wallet(user)[1] == 0


def test_the_epochs_that_are_paid_for_are_those_of_the_blocks_that_texts_fill(
    client: TestClient, signed_up: SignUp, upload: Upload, base: Base
) -> None:
    user = signed_up()
    training = upload(user, b"\n".join(b'{"text": "the quick brown fox"}' for _ in range(150)))
    validate_file(training)
    report = client.get(f"/v1/files/{training}/report", headers=user.headers).json()["report"]
    terms = {"model": base.id, "training_file": training, "method": {"type": "continued_pretraining"}}
    estimate = client.post("/v1/fine_tuning/estimate", json=terms, headers=user.headers).json()
    assert estimate["trained_tokens"] == 3 * report["tokens"]


def test_held_out_rows_of_another_kind_are_refused_at_once(
    client: TestClient, signed_up: SignUp, upload: Upload, base: Base
) -> None:
    user = signed_up()
    held_out = upload(user, b'{"text": "the quick brown fox"}')
    validate_file(held_out)
    body = {"model": base.id, "training_file": upload(user, chat_rows(4)), "validation_file": held_out}
    error = client.post("/v1/fine_tuning/jobs", json=body, headers=user.headers).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_training_file", "validation_file")


def test_a_job_beyond_the_wallet_is_refused_and_its_estimate_says_so(
    client: TestClient, signed_up: SignUp, upload: Upload, base: Base
) -> None:
    from app.billing.ledger import REVENUE, Posting, available, post

    user = signed_up()
    with transaction() as tx:
        spent = wallet(user)[0] - 5
        post(tx, "test_spend", user.account_id, [Posting(available(user.account_id), -spent), Posting(REVENUE, spent)])
    terms = {"model": base.id, "training_file": upload(user, chat_rows(20))}
    estimate = client.post("/v1/fine_tuning/estimate", json=terms, headers=user.headers).json()
    assert estimate["price_micros"] > 5
    assert not estimate["allowed_to_proceed"]
    answer = client.post("/v1/fine_tuning/jobs", json=terms, headers=user.headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"


def test_the_ledger_is_sound_after_all_that(services: object) -> None:
    with transaction() as tx:
        assert verify(tx) == []
