"""Upkeep's chores on rows that a crash or time left behind."""

import os
import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import redis
from sqlalchemy import update
from starlette.testclient import TestClient

from app.database import transaction, utc_now
from app.files.delete import expire_files, remove_lost_bytes, remove_orphans
from app.files.tables import File
from app.files.upload import uploads
from app.settings import get_settings
from app.tasks import DATASETS_QUEUE
from tests.conftest import Base, Services, Signed
from workers.upkeep.lost_tasks import CROWD, resend_validations

SignUp = Callable[..., Signed]


def upload(client: TestClient, user: Signed, lifetime: str = "3600") -> str:
    row = f'{{"messages": [{{"role": "user", "content": "{secrets.token_hex(8)}"}}]}}'
    data = {"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": lifetime}
    answer = client.post("/v1/files", data=data, files={"file": ("a.jsonl", row.encode())}, headers=user.headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def age(file_id: str, **columns: object) -> str:
    """Let time pass for one file; returns its digest."""
    with transaction() as tx:
        changed = update(File).where(File.id == file_id).values(**columns).returning(File.digest)
        return tx.scalars(changed).one()


def expire() -> None:
    with transaction() as tx:
        expire_files(tx)
    remove_lost_bytes(timedelta(days=1))


def test_an_expired_file_goes_with_its_bytes_unless_a_job_needs_it(
    client: TestClient, signed_up: SignUp, base: Base
) -> None:
    user = signed_up()
    needed, spare = upload(client, user), upload(client, user)
    job = client.post(
        "/v1/fine_tuning/jobs", json={"model": base.id, "training_file": needed}, headers=user.headers
    ).json()["id"]
    digests = {each: age(each, expires_at=utc_now() - timedelta(seconds=1)) for each in (needed, spare)}
    expire()
    assert (uploads().has(digests[needed]), uploads().has(digests[spare])) == (True, False)
    client.post(f"/v1/fine_tuning/jobs/{job}/cancel", headers=user.headers)
    expire()
    assert not uploads().has(digests[needed])


def test_bytes_that_a_killed_api_left_behind_are_removed(client: TestClient, signed_up: SignUp) -> None:
    user = signed_up()
    digest = age(upload(client, user), deleted_at=utc_now())
    assert uploads().has(digest)
    remove_lost_bytes(timedelta(days=1))
    assert not uploads().has(digest)


def test_bytes_that_no_file_has_go_once_they_are_old(client: TestClient, signed_up: SignUp) -> None:
    kept = age(upload(client, signed_up()), created_at=utc_now() - timedelta(days=1))
    old, young = (uploads().put([secrets.token_bytes(8)]).digest for _ in range(2))
    for digest in (kept, old):
        os.utime(uploads().path(digest), (0, 0))
    assert remove_orphans(timedelta(hours=1)) >= 1
    assert [uploads().has(digest) for digest in (kept, old, young)] == [True, False, True]


@pytest.fixture
def valkey(services: Services) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(get_settings().redis_url) as client:
        client.delete(DATASETS_QUEUE)
        yield client
        client.delete(DATASETS_QUEUE)


def test_a_lost_validation_is_sent_again_but_never_to_a_crowd(
    client: TestClient, signed_up: SignUp, valkey: redis.Redis
) -> None:
    age(upload(client, signed_up()), created_at=utc_now() - timedelta(minutes=5))
    with transaction() as tx:
        assert resend_validations(tx) >= 1
    assert valkey.exists(DATASETS_QUEUE)
    valkey.rpush(DATASETS_QUEUE, *["{}"] * CROWD)
    with transaction() as tx:
        assert resend_validations(tx) == 0
