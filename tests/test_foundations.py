"""What everything else stands on: ids that sort by time, errors that carry their status, an app without torch."""

import subprocess
import sys

from sqlalchemy import NullPool, create_engine, text

from app.database import engine, transaction
from app.errors import AppError, InsufficientQuota, ListingUnavailable
from app.ids import new_id
from tests.conftest import Services


def test_ids_of_later_milliseconds_sort_after_earlier_ones() -> None:
    first = new_id("file")
    later = new_id("file")
    assert first.startswith("file-")
    assert len(first) == len("file-") + 26
    assert first[:15] <= later[:15]
    assert first != later


def test_a_refusal_carries_its_status_and_code() -> None:
    error: AppError = InsufficientQuota("Top up your wallet.", param="max_tokens")
    assert (error.status, error.code, error.permanent) == (429, "insufficient_quota", True)
    assert ListingUnavailable.status == 409


def test_neither_the_api_nor_the_training_worker_loads_what_only_their_children_need() -> None:
    code = (
        "import sys, app.main, workers.fine_tuning.main; app.main.create_app(); "
        "heavy = {'torch', 'transformers', 'better_profanity', 'datasketch', 'detect_secrets', 'lingua', "
        "'phonenumbers', 'pyarrow', 'stdnum'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_connection_that_postgres_ended_is_replaced_before_it_is_used(services: Services) -> None:
    backend = text("SELECT pg_backend_pid()")
    with transaction() as tx:
        ended = tx.scalar(backend)
    with create_engine(engine().url, poolclass=NullPool).connect() as other:
        assert other.scalar(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": ended})
    with transaction() as tx:
        assert tx.scalar(backend) != ended
