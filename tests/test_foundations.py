"""What everything else stands on: ids that sort by time, errors that carry their status, an app without torch."""

import subprocess
import sys

from app.errors import AppError, InsufficientQuota, ListingUnavailable
from app.ids import new_id


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


def test_the_app_leaves_torch_and_transformers_out() -> None:
    code = (
        "import sys, app.main; app.main.create_app(); "
        "assert not {'torch', 'transformers'} & set(sys.modules), 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
