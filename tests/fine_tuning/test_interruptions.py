"""Whatever stops a training on its way, it ends in the very model of an undisturbed one, told and charged once."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from app.billing.wallet import read_wallet
from app.database import transaction
from app.files.find import find_report
from app.fine_tuning.tables import FineTuningJob
from app.settings import MEGABYTE, get_settings
from tests.conftest import Base, Signed
from tests.fine_tuning.conftest import chat_rows
from tests.fine_tuning.runs import (
    events_of,
    kill_in_checkpoint_write,
    kill_training,
    make_runner,
    new_job,
    post,
    remains,
    row_of,
    step_told,
    told,
    wait_for,
    working,
)
from workers.fine_tuning.task import JobRunner
from workers.fine_tuning.trouble import Ending, fate
from workers.fine_tuning.validate_file import validate_file

SignUp = Callable[..., Signed]
TERMS: dict[str, Any] = {"hyperparameters": {"n_epochs": 10, "batch_size": 2}}
ROWS = 24
EVERYTHING = 2**60


@pytest.fixture(scope="module")
def undisturbed(client: TestClient, base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from tests.factories import new_member

    with transaction() as tx:
        user = new_member(tx)
    job = new_job(client, user, base.id, chat_rows(ROWS), **TERMS)
    make_runner(tmp_path_factory.mktemp("undisturbed")).wake()
    return remains(job)


def held(user: Signed) -> int:
    with transaction() as tx:
        return read_wallet(tx, user.account_id).held_micros


def test_a_full_disk_a_kill_inside_a_checkpoint_and_its_owner_stop_a_job_that_then_goes_on_where_it_stood(
    client: TestClient, signed_up: SignUp, base: Base, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    user = signed_up()
    job = new_job(client, user, base.id, chat_rows(ROWS), **TERMS)
    reserved = held(user)
    make_runner(tmp_path, min_free_disk_bytes=EVERYTHING).wake()
    assert row_of(job).status == "paused"
    last = events_of(job)[-1]
    assert (last.level, "disk" in last.message) == ("error", True)
    assert not list((tmp_path / job).glob("*/state.json"))
    assert held(user) == reserved > 0
    assert post(client, user, job, "resume")["status"] == "queued"
    with working(make_runner(tmp_path)) as worker:
        seen = wait_for(job, step_told(10))
        kill_in_checkpoint_write(tmp_path / job)
        again = wait_for(job, told("ended unexpectedly"), seen)
        seen = wait_for(job, step_told(40), again)
        assert post(client, user, job, "pause")["pause_requested"]
        wait_for(job, told("paused"), seen)
        worker.join()
    paused = row_of(job)
    assert (paused.status, paused.lease_expires_at, held(user)) == ("paused", None, reserved)
    make_runner(tmp_path).wake()
    assert row_of(job).status == "paused"
    assert post(client, user, job, "resume")["status"] == "queued"
    make_runner(tmp_path).wake()
    assert remains(job) == undisturbed
    assert held(user) == 0
    assert post(client, user, job, "pause")["error"]["code"] == "job_not_pausable"
    assert post(client, user, job, "resume")["error"]["code"] == "job_not_resumable"


def test_a_finished_training_is_kept_past_its_owners_quota_and_waits_for_room_on_a_full_disk(
    client: TestClient, signed_up: SignUp, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(client, signed_up(), base.id, chat_rows(4), hyperparameters={"n_epochs": 1})
    monkeypatch.setenv("GPTSTORE_API__ACCOUNT_QUOTA_BYTES", "1")
    try:
        for least, status in ((EVERYTHING, "paused"), (1, "succeeded")):
            monkeypatch.setenv("GPTSTORE_API__MIN_FREE_DISK_BYTES", str(least))
            get_settings.cache_clear()
            make_runner(tmp_path).wake()
            assert row_of(job).status == status
            with transaction() as tx:
                tx.execute(update(FineTuningJob).where(FineTuningJob.status == "paused").values(status="queued"))
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()


@pytest.fixture
def killing() -> Iterator[None]:
    """No training process of ours lives for long."""
    stopped = threading.Event()

    def kill_again_and_again() -> None:
        while not stopped.wait(0.02):
            kill_training()

    thread = threading.Thread(target=kill_again_and_again)
    thread.start()
    yield
    stopped.set()
    thread.join()


def test_a_training_that_is_always_killed_fails_and_names_memory(
    client: TestClient, signed_up: SignUp, base: Base, tmp_path: Path, killing: None
) -> None:
    user = signed_up()
    job = new_job(client, user, base.id, chat_rows(2))
    make_runner(tmp_path).wake()
    failed = row_of(job)
    assert (failed.status, failed.charge_micros, held(user)) == ("failed", 0, 0)
    assert failed.error is not None
    assert "(137)" in failed.error["message"]
    assert "memory" in failed.error["message"]


def test_missing_memory_is_tried_smaller_once_and_a_full_disk_rests() -> None:
    killed = Ending(-signal.SIGKILL)
    by_kernel = Ending(-signal.SIGKILL, kernel_killed=True)
    assert fate(killed, tried_smaller=False) == "again"
    assert [fate(by_kernel, tried_smaller=tried) for tried in (False, True)] == ["smaller", "give_up"]
    assert fate(Ending(1, told="out_of_memory"), tried_smaller=False) == "smaller"
    assert fate(Ending(1, told="disk_full"), tried_smaller=False) == "rest"


@pytest.mark.parametrize(("verb", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_job_whose_files_are_being_read_obeys_its_owner_before_they_are(
    client: TestClient, signed_up: SignUp, base: Base, tmp_path: Path, verb: str, status: str
) -> None:
    user = signed_up()
    job = new_job(client, user, base.id, b"\n".join([chat_rows(ROWS)] * 1500), hyperparameters={"n_epochs": 1})

    class Overheard(JobRunner):
        """Its jobs are stopped by their owner as soon as they are claimed."""

        def _claim(self) -> FineTuningJob | None:
            claimed = super()._claim()
            if claimed is not None and claimed.id == job:
                post(client, user, job, verb)
            return claimed

    Overheard(make_runner(tmp_path).settings).wake()
    stopped = row_of(job)
    assert (stopped.status, held(user) > 0) == (status, verb == "pause")
    with transaction() as tx:
        assert find_report(tx, stopped.training_file_id) is None


def test_waiting_and_paused_jobs_are_cancelled_at_once(client: TestClient, signed_up: SignUp, base: Base) -> None:
    user = signed_up()
    job = new_job(client, user, base.id, chat_rows(2))
    assert post(client, user, job, "pause")["status"] == "paused"
    assert post(client, user, job, "pause")["status"] == "paused"
    assert held(user) > 0
    assert post(client, user, job, "cancel")["status"] == "cancelled"
    assert held(user) == 0


def test_an_estimate_builds_on_what_was_measured(
    client: TestClient, signed_up: SignUp, base: Base, undisturbed: dict[str, Any]
) -> None:
    user = signed_up()
    waiting = row_of(new_job(client, user, base.id, chat_rows(ROWS), **TERMS))
    post(client, user, waiting.id, "cancel")
    validate_file(waiting.training_file_id)
    terms = {"model": base.id, "training_file": waiting.training_file_id} | TERMS
    told = client.post("/v1/fine_tuning/estimate", json=terms, headers=user.headers).json()
    assert told["measured_jobs"] >= 1
    assert (told["trained_tokens"], told["price_micros"]) == (undisturbed["tokens"], undisturbed["charge"])
    assert 100 * MEGABYTE < told["peak_memory_bytes"] < 4096 * MEGABYTE
    assert 0 < told["seconds"] < 60
