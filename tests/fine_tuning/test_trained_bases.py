"""Jobs whose result has weights of its own, and jobs on other rows than conversations, from the door to the model."""

import json
from collections.abc import Callable
from typing import Any

import openai
from starlette.testclient import TestClient

from app.accounts.authenticate import Caller
from app.database import transaction
from app.inference.model_target import resolve
from app.settings import get_settings
from app.variants.bases import ready_bases
from models_registry.prompt import Detokenizer, Message, Renderer
from models_registry.store import open_store
from tests.conftest import Base, Signed
from tests.fine_tuning.conftest import Create, Upload, chat_rows
from tests.fine_tuning.recipe import preference
from tests.generation.tiny import ask
from workers.fine_tuning.task import JobRunner
from workers.generation.engine.engine import EngineOptions, TorchEngine

SignUp = Callable[..., Signed]
TEXTS = "".join(json.dumps({"text": f"number {n} comes after number {n - 1}. " * 3}) + "\n" for n in range(24)).encode()
PAIRS = "".join(json.dumps(preference(f"Is {n} good?", "yes", "no, never")) + "\n" for n in range(12)).encode()


def read(client: TestClient, user: Signed, job: dict[str, object]) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/fine_tuning/jobs/{job['id']}", headers=user.headers).json()
    return found


def messages(client: TestClient, user: Signed, job: dict[str, object]) -> list[str]:
    events = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100", headers=user.headers).json()["data"]
    return [event["message"] for event in events]


def answer(user: Signed, model: str) -> list[int]:
    """The tokens that the engine gives for this name, loaded as a generation worker loads it."""
    with transaction() as tx:
        caller = Caller(account_id=user.account_id, handle=user.handle, scopes=frozenset({"*"}))
        target = resolve(tx, caller, model)
    folder = open_store(get_settings().artifacts_url).folder(target.base.digest or "")
    renderer = Renderer.load(folder)
    options = EngineOptions(dtype="fp32", kv_cache_tokens=1024, threads=1, kernels=False)
    engine = TorchEngine(folder, detokenizer=lambda: Detokenizer(renderer), eos_ids=frozenset(), options=options)
    try:
        if target.adapter_digest is not None:
            engine.load_adapter(
                target.adapter_digest, open_store(get_settings().artifacts_url).folder(target.adapter_digest)
            )
        prompt = renderer.chat([Message("user", "number 3")])
        return ask(engine, prompt, target.adapter_digest, max_tokens=8).wait().ids()
    finally:
        engine.close()


def test_a_model_from_nothing_is_a_base_that_its_owner_calls_and_tunes(
    client: TestClient, signed_up: SignUp, upload: Upload, create: Create, base: Base, runner: JobRunner
) -> None:
    user, stranger = signed_up("maker"), signed_up("stranger")
    sizes = {"architecture": "gpt2", "layers": 2, "width": 32, "heads": 2, "context": 64, "vocabulary": 300}
    options = {"hyperparameters": sizes | {"n_epochs": 2, "batch_size": 4}}
    job = create(
        user,
        training_file=upload(user, TEXTS),
        validation_file=upload(user, TEXTS),
        suffix="own",
        method={"type": "pretraining", "pretraining": options},
    )
    runner.wake()
    done = read(client, user, job)
    assert done["status"] == "succeeded", done["error"]
    assert done["method"]["type"] == "pretraining"
    assert done["method"]["pretraining"]["hyperparameters"].items() >= sizes.items()
    model = done["fine_tuned_model"]
    assert model.startswith(f"ft:{base.id}:{user.handle}:own:")
    shown = client.get(f"/v1/models/{model}", headers=user.headers).json()
    assert shown["lineage"]["job"] == job["id"]
    assert shown["lineage"]["method"] == "pretraining"
    assert shown["base_model"] not in [each.id for each in bases()]
    for name in (model, shown["base_model"]):
        assert client.get(f"/v1/models/{name}", headers=stranger.headers).json()["error"]["code"] == "model_not_found"
    assert len(answer(user, model)) == 8
    tuned = create(user, model=model, training_file=upload(user, chat_rows(8)), hyperparameters={"n_epochs": 1})
    runner.wake()
    found = read(client, user, tuned)
    assert (found["status"], found["method"]["type"]) == ("succeeded", "supervised")
    assert (
        client.get(f"/v1/models/{found['fine_tuned_model']}", headers=user.headers).json()["base_model"]
        == shown["base_model"]
    )


def bases() -> list[Any]:
    with transaction() as tx:
        return ready_bases(tx)


def test_a_deeper_model_is_trained_whole_remembers_what_it_was_made_of_and_keeps_its_last_epochs(
    client: TestClient, signed_up: SignUp, upload: Upload, create: Create, base: Base, runner: JobRunner
) -> None:
    user, stranger = signed_up(), signed_up()
    changes = [{"type": "repeat_layers", "layers": [0, 1]}]
    options = {"model_changes": changes, "hyperparameters": {"n_epochs": 5}}
    job = create(user, training_file=upload(user, chat_rows(8)), method={"type": "supervised", "supervised": options})
    runner.wake()
    done = read(client, user, job)
    assert done["status"] == "succeeded", done["error"]
    assert done["method"]["supervised"]["model_changes"] == changes
    assert done["method"]["supervised"]["hyperparameters"]["adapter"] == "none"
    shown = client.get(f"/v1/models/{done['fine_tuned_model']}", headers=user.headers).json()
    assert (shown["lineage"]["base"], shown["lineage"]["model_changes"]) == (base.id, changes)
    said = messages(client, user, job)
    assert any(f"weights of its own ({shown['base_model']})" in message for message in said)
    assert any(message.startswith("auto chose batch_size=1") for message in said)
    found = client.get(f"/v1/fine_tuning/jobs/{job['id']}/checkpoints", headers=user.headers).json()["data"]
    names = [each["fine_tuned_model_checkpoint"] for each in found]
    assert [each["step_number"] for each in found] == [40, 32, 24]
    assert names == [done["fine_tuned_model"], *(f"{done['fine_tuned_model']}:ckpt-step-{step}" for step in (32, 24))]
    epochs = [client.get(f"/v1/models/{name}", headers=user.headers).json() for name in names]
    assert len({each["digest"] for each in epochs}) == len({each["base_model"] for each in epochs}) == 3
    assert [each["lineage"].get("step") for each in epochs] == [None, 32, 24]
    assert [len(answer(user, name)) for name in names] == [8] * len(names)
    refused = client.get(f"/v1/models/{names[1]}", headers=stranger.headers).json()
    assert refused["error"]["code"] == "model_not_found"


def test_preferences_train_an_adapter_through_the_openai_sdk(
    client: TestClient, signed_up: SignUp, upload: Upload, base: Base, runner: JobRunner
) -> None:
    user = signed_up()
    sdk = openai.OpenAI(base_url="http://testserver/v1", api_key=user.key, http_client=client, max_retries=0)
    job = sdk.fine_tuning.jobs.create(
        model=base.id,
        training_file=upload(user, PAIRS),
        validation_file=upload(user, PAIRS),
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.5, "n_epochs": 2}}},
    )
    runner.wake()
    done = sdk.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded", done.error
    assert done.method is not None
    assert done.method.dpo is not None
    assert done.method.dpo.hyperparameters is not None
    assert (done.method.type, done.method.dpo.hyperparameters.beta) == ("dpo", 0.5)
    metrics = [each.data for each in sdk.fine_tuning.jobs.list_events(job.id, limit=100) if each.type == "metrics"]
    assert all("reward_margin" in each and "reward_accuracy" in each for each in metrics)  # type: ignore[operator]
    (checkpoint, *_) = sdk.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.metrics.model_extra is not None
    assert checkpoint.metrics.model_extra["full_valid_reward_accuracy"] == 1.0


def test_rows_of_another_kind_fail_the_job_and_say_which_kind_is_wanted(
    client: TestClient, signed_up: SignUp, upload: Upload, create: Create, base: Base, runner: JobRunner
) -> None:
    user = signed_up()
    training = upload(user, PAIRS)
    job = create(user, training_file=training)
    runner.wake()
    failed = read(client, user, job)
    assert failed["error"]["code"] == "invalid_training_file"
    assert "'chat'" in failed["error"]["message"]
    body = {"model": base.id, "training_file": training, "method": {"type": "pretraining"}}
    refused = client.post("/v1/fine_tuning/jobs", json=body, headers=user.headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_training_file")
