"""Where a job's checkpoints lie: found again by the next attempt on this machine, readable by nobody else."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.database import transaction
from app.fine_tuning.rules import OPEN
from app.fine_tuning.tables import FineTuningJob
from app.settings import FineTuningSettings


def root_folder(settings: FineTuningSettings) -> Path:
    return Path(settings.work_dir) if settings.work_dir else Path(tempfile.gettempdir()) / "gptstore-fine-tuning"


def work_folder(settings: FineTuningSettings, job_id: str) -> Path:
    folder = root_folder(settings) / job_id
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def forget_closed(settings: FineTuningSettings) -> int:
    """Remove the folders of jobs that ended elsewhere: cancelled while paused, or by another worker."""
    folders = {path.name: path for path in root_folder(settings).glob("ftjob-*")}
    with transaction() as tx:
        still = FineTuningJob.id.in_(folders), FineTuningJob.status.in_(OPEN)
        kept = set(tx.scalars(select(FineTuningJob.id).where(*still)))
    for name in folders.keys() - kept:
        shutil.rmtree(folders[name], ignore_errors=True)
    return len(folders.keys() - kept)


def checkpointed_steps(work: Path) -> list[dict[str, Any]]:
    """The figures of every step that the newest checkpoint remembers (recipes/checkpoint.py), oldest first."""
    states = sorted(work.glob("step-*/state.json"))
    history: list[dict[str, Any]] = json.loads(states[-1].read_text()).get("history", []) if states else []
    return history
