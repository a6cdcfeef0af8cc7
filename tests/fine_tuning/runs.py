"""Jobs under observation: a worker in a thread, a moment to wait for, and what a run left behind to compare."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
from sqlalchemy import select
from sqlalchemy.engine import make_url
from starlette.testclient import TestClient

from app.database import transaction
from app.files.tables import File
from app.files.upload import uploads
from app.fine_tuning.events import CHANNEL
from app.fine_tuning.tables import FineTuningEvent, FineTuningJob
from app.settings import FineTuningSettings, get_settings
from app.variants.tables import Variant
from tests.conftest import Signed
from workers.fine_tuning.task import JobRunner


def make_runner(work: Path, **changes: Any) -> JobRunner:
    """One slot and one thread, so that sums are added in one order; a short lease, so that wishes are heard soon."""
    plain = {"work_dir": str(work), "threads": 1, "nice": 0, "seconds_between_checkpoints": 0.1, "lease": 1.0}
    return JobRunner(FineTuningSettings.model_validate(plain | changes))


@contextmanager
def working(runner: JobRunner) -> Iterator[threading.Thread]:
    """A worker that works until nothing is due."""
    thread = threading.Thread(target=runner.wake, name="worker")
    thread.start()
    try:
        yield thread
    finally:
        runner.stopping.set()
        thread.join()
        runner.stopping.clear()


def wait_for(job_id: str, wanted: Callable[[FineTuningEvent], bool], after: str = "", seconds: float = 60) -> str:
    """Until the job tells such an event later than the event `after`; its id."""
    url = make_url(get_settings().database_url).set(drivername="postgresql")
    until = time.monotonic() + seconds
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        while time.monotonic() < until:
            for event in events_of(job_id):
                if event.id > after and wanted(event):
                    return event.id
            for _ in connection.notifies(timeout=until - time.monotonic(), stop_after=1):
                pass
    raise AssertionError(f"{job_id} told {[event.message for event in events_of(job_id)][-5:]}")


def training_processes() -> list[psutil.Process]:
    """The recipes that this process, or a worker that it started, runs."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "workers.fine_tuning.recipes" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def kill_training() -> int:
    """kill -9; how many there were."""
    return len([child.kill() for child in training_processes() if child.is_running()])


def kill_in_checkpoint_write(work: Path, seconds: float = 60) -> None:
    """kill -9 while a checkpoint lies half-written: the process is stopped, looked at, and goes on if it was not."""
    until = time.monotonic() + seconds
    child = training_processes()[0] if training_processes() else None
    while time.monotonic() < until:
        if child is None or not child.is_running():
            child = next(iter(training_processes()), None)
        elif (work / "new").exists():
            child.suspend()
            if (work / "new").exists():
                child.kill()
                return
            child.resume()
    raise AssertionError("no checkpoint was caught being written")


def step_told(number: int) -> Callable[[FineTuningEvent], bool]:
    return lambda event: event.type == "metrics" and event.data["step"] >= number


def told(word: str) -> Callable[[FineTuningEvent], bool]:
    return lambda event: word in event.message


def events_of(job_id: str) -> list[FineTuningEvent]:
    with transaction() as tx:
        query = select(FineTuningEvent).where(FineTuningEvent.job_id == job_id)
        return list(tx.scalars(query.order_by(FineTuningEvent.id)))


def row_of(job_id: str) -> FineTuningJob:
    with transaction() as tx:
        return tx.get_one(FineTuningJob, job_id)


def remains(job_id: str) -> dict[str, Any]:
    """What an undisturbed run and a disturbed one must have in common."""
    job = row_of(job_id)
    assert job.status == "succeeded", job.error
    with transaction() as tx:
        digest = tx.get_one(Variant, job.variant_id).digest
        figures = tx.get_one(File, job.result["result_files"][0])
        csv = uploads().path(figures.digest).read_text()
    events = events_of(job_id)
    curve = [(event.data["step"], event.data["train_loss"]) for event in events if event.type == "metrics"]
    once = ["Fine-tuning job started", "The job has successfully completed"]
    assert [sum(event.message == message for event in events) for message in once] == [1, 1]
    return {"digest": digest, "csv": csv, "curve": curve, "tokens": job.trained_tokens, "charge": job.charge_micros}


def new_job(client: TestClient, user: Signed, base_id: str, training: bytes, **body: Any) -> str:
    files = {"file": ("d.jsonl", training)}
    answer = client.post("/v1/files", files=files, data={"purpose": "fine-tune"}, headers=user.headers)
    job = client.post(
        "/v1/fine_tuning/jobs",
        json={"model": base_id, "training_file": answer.json()["id"], "seed": 7} | body,
        headers=user.headers,
    )
    assert job.status_code == 200, job.text
    return str(json.loads(job.text)["id"])


def post(client: TestClient, user: Signed, job_id: str, verb: str) -> Any:
    return client.post(f"/v1/fine_tuning/jobs/{job_id}/{verb}", headers=user.headers).json()
