"""Whose job comes next: every tenant has its turn, nobody more than their share, no worker more than it can hold."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from app.database import NewSession, utc_now
from app.fine_tuning.claim import TOO_LARGE, Slot, claim_next, tell_what_does_not_fit
from app.fine_tuning.events import last_reported_step
from app.fine_tuning.finish import cancel
from app.fine_tuning.pause import pause
from app.fine_tuning.rules import OPEN
from app.fine_tuning.tables import FineTuningEvent, FineTuningJob
from app.settings import FineTuningSettings, get_settings
from tests.conftest import Services
from tests.factories import new_account, new_base
from workers.fine_tuning.device import machine_memory, memory_of

ANY = 2**60
Order = Callable[[Session, str, str], FineTuningJob]
SLOT = Slot(lease=60, memory_bytes=ANY)


@pytest.fixture
def alone(services: Services) -> Iterator[Session]:
    """A transaction that sees no open job but its own, and is undone."""
    with NewSession() as tx:
        tx.execute(update(FineTuningJob).where(FineTuningJob.status.in_(OPEN)).values(status="cancelled"))
        yield tx
        tx.rollback()


def queue(tx: Session, count: int = 1, account_id: str | None = None, **columns: object) -> list[FineTuningJob]:
    """Jobs of one tenant, one after the other."""
    account_id = account_id or new_account(tx, 0).id
    made = []
    for _ in range(count):
        row: dict[str, object] = {"status": "queued", "method": {"type": "supervised"}, "hyperparameters": {}}
        file_id = new_file(tx, account_id)
        row |= {"model": "x", "base_id": new_base(tx).id, "training_file_id": file_id, "seed": 1} | columns
        job = FineTuningJob(account_id=account_id, **row)
        tx.add(job)
        tx.flush()
        made.append(job)
    return made


def new_file(tx: Session, account_id: str) -> str:
    from app.files.tables import File

    file = File(account_id=account_id, filename="a.jsonl", purpose="fine-tune", bytes=1, digest="0" * 64)
    tx.add(file)
    tx.flush()
    return file.id


def claimed(tx: Session, count: int, slot: Slot = SLOT) -> list[str | None]:
    found = [claim_next(tx, slot) for _ in range(count)]
    return [job.id if job else None for job in found]


def test_a_tenant_with_many_jobs_does_not_keep_others_waiting(alone: Session) -> None:
    greedy, modest = queue(alone, 3), queue(alone)
    assert claimed(alone, 3) == [greedy[0].id, modest[0].id, greedy[1].id]


def test_turns_go_to_who_was_served_longest_ago(alone: Session) -> None:
    first, second = queue(alone, 2), queue(alone, 2)
    for tenant, minutes in ((first, 1), (second, 5)):
        tenant[0].status, tenant[0].started_at = "succeeded", utc_now() - timedelta(minutes=minutes)
    alone.flush()
    assert claimed(alone, 2) == [second[1].id, first[1].id]


def test_no_tenant_has_more_jobs_running_than_its_limit(alone: Session) -> None:
    most = get_settings().fine_tuning.max_running_per_account
    jobs = queue(alone, most + 1)
    assert claimed(alone, most + 1) == [*(job.id for job in jobs[:most]), None]
    jobs[0].lease_expires_at = utc_now() - timedelta(seconds=1)
    alone.flush()
    assert claimed(alone, 1) == [jobs[0].id]


def test_priority_orders_the_jobs_of_one_tenant_only(alone: Session) -> None:
    patient = queue(alone)
    account = new_account(alone, 0).id
    late, urgent = queue(alone, 1, account), queue(alone, 1, account, priority=50)
    assert claimed(alone, 3) == [patient[0].id, urgent[0].id, late[0].id]


def test_a_worker_without_the_memory_never_takes_the_job_and_its_owner_hears_why_once(alone: Session) -> None:
    large, small = queue(alone, memory_bytes=2_000), queue(alone, memory_bytes=900)
    assert claimed(alone, 2, Slot(60, 1_000)) == [small[0].id, None]
    for _ in range(2):
        tell_what_does_not_fit(alone, 1_000)
    told = alone.query(FineTuningEvent).filter_by(job_id=large[0].id).all()
    assert [event.data for event in told] == [{"reason": TOO_LARGE}]
    assert last_reported_step(alone, large[0].id) == 0
    assert claimed(alone, 1, Slot(60, 2_000)) == [large[0].id]


def test_a_paused_job_is_nobodys_and_one_paused_while_its_worker_died_rests(alone: Session) -> None:
    queue(alone, status="paused")
    lapsed = utc_now() - timedelta(seconds=1)
    dead = queue(alone, status="running", pause_requested=True, lease_expires_at=lapsed)
    assert claimed(alone, 1) == [None]
    assert (dead[0].status, dead[0].pause_requested) == ("paused", False)


@pytest.mark.parametrize(("order", "status"), [(cancel, "cancelled"), (pause, "paused")])
def test_a_job_whose_worker_is_gone_obeys_its_owner_at_once(alone: Session, order: Order, status: str) -> None:
    lately, soon = utc_now() - timedelta(seconds=1), utc_now() + timedelta(seconds=60)
    gone, held = (queue(alone, status="running", lease_expires_at=until)[0] for until in (lately, soon))
    assert order(alone, gone.account_id, gone.id).status == status
    assert order(alone, held.account_id, held.id).status == "running"


def test_a_worker_offers_what_its_device_has_unless_told() -> None:
    assert memory_of(FineTuningSettings(device="cpu", memory_bytes=5)) == 5
    assert memory_of(FineTuningSettings(device="cpu")) == machine_memory() > 2**28
