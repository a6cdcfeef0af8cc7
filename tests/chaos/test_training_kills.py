"""20 random kill -9 of the worker or its training, 5 more inside the checkpoint write: the model, its curve, its price
and its events are those of a run that nobody disturbed.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from app.billing.ledger import verify
from app.billing.tables import LedgerTransfer
from app.database import transaction
from app.fine_tuning.claim import wake_workers
from app.fine_tuning.events import last_reported_step
from app.fine_tuning.find import list_checkpoints
from app.fine_tuning.rules import OPEN
from tests.conftest import Base, Services, Signed
from tests.factories import new_member
from tests.fine_tuning.conftest import chat_rows
from tests.fine_tuning.runs import (
    kill_in_checkpoint_write,
    kill_training,
    make_runner,
    new_job,
    remains,
    row_of,
    step_told,
    wait_for,
)

KILLS, KILLS_IN_WRITE = 20, 5
TERMS = {"hyperparameters": {"n_epochs": 50, "batch_size": 2}}
ROWS = 96


def member() -> Signed:
    with transaction() as tx:
        return new_member(tx)


class Worker:
    """A real worker process that is started again after each kill."""

    def __init__(self, work: Path) -> None:
        chosen = {"WORK_DIR": str(work), "THREADS": "1", "NICE": "0", "LEASE": "2"}
        chosen["SECONDS_BETWEEN_CHECKPOINTS"] = "0.1"
        self._environment = os.environ | {f"GPTSTORE_FINE_TUNING__{name}": value for name, value in chosen.items()}
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "workers.fine_tuning.main"]
        return subprocess.Popen(command, env=self._environment, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = self._started()


@contextmanager
def living(work: Path) -> Iterator[Worker]:
    worker = Worker(work)
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait()


def wait_for_step(job_id: str, step: int) -> None:
    """As upkeep does, the worker is told again and again that there may be work."""
    for _ in range(60):
        try:
            wait_for(job_id, step_told(step), seconds=2)
            return
        except AssertionError:
            row = row_of(job_id)
            if last_step(job_id) >= step:  # told since
                return
            assert row.status in OPEN, row.error
            with transaction() as tx:
                wake_workers(tx)
    raise AssertionError(f"no step {step} of {job_id} within two minutes")


def kill_one_training(seconds: float = 60) -> None:
    """At once, or as soon as there is one: the last of them may just have been killed."""
    until = time.monotonic() + seconds
    while not kill_training():
        assert time.monotonic() < until, "no training process"
        time.sleep(0.01)


def last_step(job_id: str) -> int:
    with transaction() as tx:
        return last_reported_step(tx, job_id)


@pytest.mark.timeout(1200)
def test_25_kills_change_nothing(client: TestClient, base: Base, services: Services, tmp_path: Path) -> None:
    undisturbed = new_job(client, member(), base.id, chat_rows(ROWS), **TERMS)
    make_runner(tmp_path / "undisturbed").wake()
    expected = remains(undisturbed)
    chance = random.Random(4)  # noqa: S311
    kinds = ["write"] * KILLS_IN_WRITE + ["worker"] * (KILLS // 2) + ["training"] * (KILLS // 2)
    chance.shuffle(kinds)
    job = new_job(client, member(), base.id, chat_rows(ROWS), **TERMS)
    hit = set[int]()  # attempts; what a killed worker leaves running may be killed in its turn
    with living(tmp_path / "disturbed") as worker:
        for kind in kinds:
            wait_for_step(job, last_step(job) + chance.randint(1, 20))
            hit.add(row_of(job).fencing_token)
            if kind == "worker":
                worker.kill()
            elif kind == "training":
                kill_one_training()
            else:
                kill_in_checkpoint_write(tmp_path / "disturbed" / job)
        assert row_of(job).status in OPEN, "the job ended before the last kill"
        wait_for_step(job, expected["curve"][-1][0])
        wait_for(job, lambda event: event.message == "The job has successfully completed")
    assert row_of(job).fencing_token > len(hit) >= KILLS
    assert remains(job) == expected
    with transaction() as tx:
        steps = [[each.step for each in list_checkpoints(tx, each_job, None, 100)] for each_job in (undisturbed, job)]
        charged = tx.scalars(select(LedgerTransfer).where(LedgerTransfer.reference == job)).all()
        assert steps[0] == steps[1]
        assert sorted(each.kind for each in charged) == ["fine_tuning", "fine_tuning_hold"]
    with transaction() as tx:
        assert verify(tx) == []
