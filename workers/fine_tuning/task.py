"""The body of `fine_tuning.run`: claim due jobs and see each through a child process to its end."""

import math
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from app.database import transaction
from app.files.find import find_report
from app.files.tables import File
from app.files.upload import uploads
from app.fine_tuning import finish, progress
from app.fine_tuning.claim import claim_next
from app.fine_tuning.events import Event, last_reported_step
from app.fine_tuning.methods import Method, block_tokens, method_of, peak_rate, wrong_rows
from app.fine_tuning.progress import LostLease
from app.fine_tuning.rules import Hyperparameters, explain, resolve
from app.fine_tuning.tables import FineTuningJob
from app.settings import FineTuningSettings, get_settings
from app.variants.tables import BaseModel, Variant
from models_registry.store import open_store
from workers.fine_tuning.child import Child, LeaseKeeper
from workers.fine_tuning.metrics import MetricsLog
from workers.fine_tuning.results import keep_checkpoint, keep_result
from workers.fine_tuning.spec import JobSpec
from workers.fine_tuning.validate_file import check_file

log = structlog.get_logger(__name__)


class JobRunner:
    """The training slots of this process. A message only wakes it: what is due stands in Postgres."""

    def __init__(self, settings: FineTuningSettings) -> None:
        self.settings = settings
        self.stopping = threading.Event()
        self._slots = threading.BoundedSemaphore(settings.slots)
        self._woken = threading.Event()

    def wake(self) -> None:
        """Work until nothing is due; with all slots taken, whoever works looks again before it rests."""
        self._woken.set()
        while self._woken.is_set() and self._slots.acquire(blocking=False):
            try:
                self._woken.clear()
                while not self.stopping.is_set() and (job := self._claim()):
                    self._run(job)
            finally:
                self._slots.release()

    def _claim(self) -> FineTuningJob | None:
        with transaction() as tx:
            return claim_next(tx, self.settings.lease)

    def _run(self, job: FineTuningJob) -> None:
        """One attempt. Whatever goes wrong with it, the job is either ended or given back."""
        try:
            JobAttempt(self, job).run()
        except LostLease:
            log.warning("job_overtaken", job_id=job.id)
        except Exception as error:  # whatever broke, the job must not stay claimed
            log.exception("job_attempt_failed", job_id=job.id)
            self.give_back(job, f"{type(error).__name__} while training")

    def give_back(self, job: FineTuningJob, reason: str) -> None:
        event = Event(f"The training process ended unexpectedly ({reason}); trying again", level="warn")
        try:
            with transaction() as tx:
                progress.release(tx, job.id, job.fencing_token, count_attempt=True, events=[event])
        except LostLease:
            log.warning("job_overtaken", job_id=job.id)


class JobAttempt:
    """One claim of one job, from its files to its end."""

    def __init__(self, runner: JobRunner, job: FineTuningJob) -> None:
        self.runner, self.job, self.token = runner, job, job.fencing_token
        self.work = work_folder(runner.settings, job.id)

    def run(self) -> None:
        spec = self._prepare()
        if spec is None:
            self._forget_work()
            return
        child = Child(spec)
        log.info("training_started", job_id=self.job.id, attempt=self.job.attempts, pid=child.pid)
        try:
            with LeaseKeeper(
                self.job.id, self.token, self.runner.settings.lease, child, self.runner.stopping
            ) as keeper:
                ended = self._follow(child)
                reason = child.end()
        finally:
            child.close()
        if keeper.lost:
            raise LostLease(self.job.id)
        if ended:
            self._forget_work()
        elif ended is None:
            self.runner.give_back(self.job, reason)

    def _prepare(self) -> JobSpec | None:
        """Validate what is not validated yet and resolve `auto`; None when that ended the job."""
        job = self.job
        with transaction() as tx:
            base = tx.get_one(BaseModel, job.base_id)
            parent = tx.get(Variant, job.parent_variant_id) if job.parent_variant_id else None
            wanted = {"training_file": job.training_file_id, "validation_file": job.validation_file_id}
            files = {name: tx.get_one(File, id) for name, id in wanted.items() if id is not None}
            unchecked = [name for name, file in files.items() if find_report(tx, file.id) is None]
        troubles = {name: check_file(files[name], base) for name in unchecked}
        troubles |= {name: file.status_details for name, file in files.items() if file.status == "error"}
        for name, trouble in troubles.items():
            if trouble is not None:
                self._fail("invalid_training_file", trouble, name)
                return None
        method = method_of(job.method)
        with transaction() as tx:
            reports = {name: found.report for name, file in files.items() if (found := find_report(tx, file.id))}
        for name, report in reports.items():
            if trouble := wrong_rows(method.type, report):
                self._fail("invalid_training_file", trouble, name)
                return None
        asked = Hyperparameters(**job.hyperparameters)
        rows = training_rows(method, reports["training_file"], base.context_length or 2048)
        resolved = resolve(asked, rows)
        with transaction() as tx:
            explained = explain(asked, resolved, rows, peak_rate(method))
            progress.begin(tx, job.id, self.token, vars(resolved), explained)
        return self._spec(base, parent, files, vars(resolved))

    def _spec(
        self, base: BaseModel, parent: Variant | None, files: dict[str, File], resolved: dict[str, object]
    ) -> JobSpec:
        settings, store = self.runner.settings, open_store(get_settings().artifacts_url)
        method = method_of(self.job.method)
        return JobSpec.model_validate(
            {
                **resolved,
                "method": method.type,
                "settings": method.settings.model_dump(),
                "model_changes": [change.model_dump() for change in method.changes],
                "peak_rate": peak_rate(method),
                "base": str(store.folder(base.digest or "")),
                "parent": str(store.folder(parent.digest)) if parent else None,
                "training": str(uploads().path(files["training_file"].digest)),
                "validation": str(uploads().path(files["validation_file"].digest))
                if "validation_file" in files
                else None,
                "work": str(self.work),
                "seed": self.job.seed,
                "context_length": base.context_length or 2048,
                "threads": settings.threads,
                "nice": settings.nice,
                "seconds_between_checkpoints": settings.seconds_between_checkpoints,
            }
        )

    def _follow(self, child: Child) -> bool | None:
        """Write down what the child tells. True: the job ended; False: given back as asked; None: the child broke."""
        with transaction() as tx:
            metrics = MetricsLog(self.job.id, self.token, last_reported_step(tx, self.job.id))
        for report in child.reports():
            metrics.add(report)
            if report.event == "saved":
                with transaction() as tx:
                    progress.advanced(tx, self.job.id, self.token)
            elif report.event == "epoch":
                keep_checkpoint(self.job, report.data)
            elif report.event == "done":
                metrics.flush()
                keep_result(self.job, report.data)
                return True
            elif report.event == "refused":
                metrics.flush()
                self._fail(report.data["code"], report.data["message"], report.data.get("param"))
                return True
            elif report.event == "stopped":
                metrics.flush()
                return self._stopped()
        metrics.flush()
        return None

    def _stopped(self) -> bool:
        """The child stopped as asked: by the owner's cancel, or because this worker shuts down."""
        with transaction() as tx:
            if progress.owned_job(tx, self.job.id, self.token).cancel_requested:
                finish.cancelled(tx, self.job.id, self.token)
                return True
            progress.release(tx, self.job.id, self.token, count_attempt=False)
            return False

    def _fail(self, code: str, message: str, param: str | None) -> None:
        with transaction() as tx:
            finish.fail(tx, self.job.id, self.token, code, message, param)

    def _forget_work(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)


def training_rows(method: Method, report: Mapping[str, Any], context_length: int) -> int:
    """What batches are made of: the file's rows, or the blocks that its texts fill."""
    block = block_tokens(method, context_length)
    return math.ceil(report["tokens"] / block) if block else int(report["rows"])


def work_folder(settings: FineTuningSettings, job_id: str) -> Path:
    """Where a job's checkpoints lie: found again by the next attempt on this machine, readable by nobody else."""
    root = Path(settings.work_dir) if settings.work_dir else Path(tempfile.gettempdir()) / "gptstore-fine-tuning"
    folder = root / job_id
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
