"""Training data for the tiny base, and the worker's own code run in this process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.settings import FineTuningSettings
from tests.conftest import Base, Signed
from workers.fine_tuning.task import JobRunner


def chat_rows(count: int, first: int = 0) -> bytes:
    """Rows of several lengths, all different."""
    lines = []
    for number in range(first, first + count):
        messages = [
            {"role": "user", "content": f"What is number {number}?"},
            {"role": "assistant", "content": f"Number {number} is " + "one more " * (number % 5) + "done."},
        ]
        lines.append(json.dumps({"messages": messages}))
    return "\n".join(lines).encode()


Upload = Callable[..., str]
Create = Callable[..., dict[str, object]]


@pytest.fixture
def upload(client: TestClient) -> Upload:
    """`upload(user, content)` → the id of a training file."""

    def run(user: Signed, content: bytes) -> str:
        form = {"purpose": "fine-tune"}
        answer = client.post("/v1/files", files={"file": ("d.jsonl", content)}, data=form, headers=user.headers)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    return run


@pytest.fixture
def create(client: TestClient, base: Base) -> Create:
    """`create(user, training_file=…)` → the job as answered."""

    def run(user: Signed, **body: object) -> dict[str, object]:
        answer = client.post("/v1/fine_tuning/jobs", json={"model": base.id} | body, headers=user.headers)
        assert answer.status_code == 200, answer.text
        job: dict[str, object] = answer.json()
        return job

    return run


@pytest.fixture
def runner(tmp_path: Path) -> JobRunner:
    """One slot; one thread, so that sums are added in one order."""
    return JobRunner(FineTuningSettings(work_dir=str(tmp_path), threads=1, nice=0, seconds_between_checkpoints=0))
