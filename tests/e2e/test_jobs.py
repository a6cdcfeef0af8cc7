"""Fine-tuning by OpenAI's job API, on the real base, with the official SDK."""

import json
import threading
from typing import Any, cast

import openai
import pytest

from app.cli.demo_data import tech_support
from app.cli.job_progress import events
from tests.e2e.conftest import BASE, Person, Store
from tests.e2e.test_calls import ask, wait_settled

FINAL = ("succeeded", "failed", "cancelled")


def upload(seller: Person, rows: int) -> str:
    file = seller.openai.files.create(file=("support.jsonl", tech_support(rows).training), purpose="fine-tune")
    return file.id


def start(seller: Person, file_id: str, **options: Any) -> Any:
    create: Any = seller.openai.fine_tuning.jobs.create
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4}}}
    return create(**({"model": BASE, "training_file": file_id, "method": method, "seed": 1} | options))


def likelihood(person: Person, model: str, text: str) -> float:
    """Log-probability that the served model gives to a text, the first token apart."""
    scored = person.openai.completions.create(model=model, prompt=text, echo=True, logprobs=0, max_tokens=0)
    logprobs = scored.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None
    return sum(each or 0.0 for each in logprobs.token_logprobs)


def wait_until(seller: Person, job_id: str, statuses: tuple[str, ...], seconds: float = 120) -> Any:
    """Asked for, as the SDK's users do: OpenAI's API has nothing to await."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.2)):
        job = seller.openai.fine_tuning.jobs.retrieve(job_id)
        if job.status in statuses:
            return job
        pause.wait(0.2)
    raise AssertionError(f"{job_id} is {job.status} after {seconds} s")


def wait_for_step(seller: Person, job_id: str, seconds: float = 120) -> None:
    """Until the first optimizer step was reported."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.2)):
        told = seller.openai.fine_tuning.jobs.list_events(job_id, limit=100).data
        if any(event.type == "metrics" for event in told):
            return
        pause.wait(0.2)
    raise AssertionError(f"{job_id} made no step in {seconds} s")


def test_a_job_trains_reports_and_makes_a_callable_model(seller: Person) -> None:
    training, held_out = upload(seller, 32), tech_support(1).held_out
    validation = seller.openai.files.create(file=("held_out.jsonl", held_out), purpose="fine-tune").id
    job = start(seller, training, validation_file=validation, suffix="e2e")
    assert job.status in ("validating_files", "queued", "running")
    assert job.id in [each.id for each in seller.openai.fine_tuning.jobs.list()]
    seen = list(events(seller.openai, job.id))
    done = seller.openai.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded", done.error
    assert done.fine_tuned_model is not None
    assert done.fine_tuned_model.startswith(f"ft:{BASE}:{seller.handle}:e2e:")
    assert seen[::-1] == seller.openai.fine_tuning.jobs.list_events(job.id, limit=100).data
    losses = [cast(dict[str, Any], event.data)["train_loss"] for event in seen if event.type == "metrics"]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    checkpoint = seller.openai.fine_tuning.jobs.checkpoints.list(job.id).data[0]
    assert checkpoint.metrics.full_valid_loss is not None
    assert done.trained_tokens
    assert ask(seller, done.fine_tuned_model).choices[0].message.content
    learned = json.loads(tech_support(1).training)["messages"][-1]["content"]
    assert likelihood(seller, done.fine_tuned_model, learned) > likelihood(seller, BASE, learned) + 1
    assert done.fine_tuned_model in [model.id for model in seller.openai.models.list()]
    seller.openai.models.delete(done.fine_tuned_model)
    with pytest.raises(openai.NotFoundError):
        ask(seller, done.fine_tuned_model)


def test_a_cancelled_job_stops_and_cannot_be_cancelled_again(seller: Person) -> None:
    job = start(seller, upload(seller, 400))
    wait_for_step(seller, job.id)
    seller.openai.fine_tuning.jobs.cancel(job.id)
    assert wait_until(seller, job.id, FINAL).status == "cancelled"
    with pytest.raises(openai.ConflictError) as again:
        seller.openai.fine_tuning.jobs.cancel(job.id)
    assert again.value.code == "job_not_cancellable"
    wait_settled(seller)


def test_killing_the_fine_tuning_worker_midway_only_delays_the_job(store: Store, seller: Person) -> None:
    printed = len(store.lines)
    job = start(seller, upload(seller, 32))
    wait_for_step(seller, job.id)
    store.part("workers.fine_tuning.main").kill()
    store.wait_for(lambda line: "ready fine-tuning" in line, after=printed)
    done = wait_until(seller, job.id, FINAL)
    assert done.status == "succeeded", done.error
    told = seller.openai.fine_tuning.jobs.list_events(job.id, limit=100).data
    made = [event for event in told if "fine-tuned model created" in event.message]
    assert len(made) == 1
    wait_settled(seller)
    assert store.verify_ledger() == "the ledger is sound\n"


def test_a_model_made_from_nothing_is_loaded_at_its_first_call(seller: Person) -> None:
    rows = b"".join(b'{"text": "The store opens at %d and closes at %d."}\n' % (hour, hour + 9) for hour in range(40))
    file = seller.openai.files.create(file=("texts.jsonl", rows), purpose="fine-tune").id
    sizes = {"architecture": "gpt2", "layers": 1, "width": 64, "heads": 2, "context": 64, "n_epochs": 1}
    job = start(seller, file, method={"type": "pretraining", "pretraining": {"hyperparameters": sizes}})
    done = wait_until(seller, job.id, FINAL)
    assert done.status == "succeeded", done.error
    assert ask(seller, done.fine_tuned_model).usage.completion_tokens > 0
