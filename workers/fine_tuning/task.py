"""The body of `fine_tuning.run`: claim due jobs and see each through a child process to its end."""

import shutil
import threading
import time
from collections.abc import Callable

import structlog

from app.database import transaction
from app.errors import InsufficientStorage
from app.files.tables import File
from app.files.upload import uploads
from app.fine_tuning import finish, progress
from app.fine_tuning.claim import Slot, claim_next, tell_what_does_not_fit
from app.fine_tuning.events import Event, last_reported_step, told_messages
from app.fine_tuning.methods import method_of, peak_rate, training_rows
from app.fine_tuning.pause import rest
from app.fine_tuning.progress import LostLease
from app.fine_tuning.rules import Hyperparameters, explain, resolve
from app.fine_tuning.tables import FineTuningJob
from app.settings import FineTuningSettings, get_settings
from app.variants.tables import BaseModel, Variant
from models_registry.errors import StorageFull
from models_registry.store import open_store
from workers.fine_tuning.child import Charge, Child, LeaseKeeper
from workers.fine_tuning.device import memory_of
from workers.fine_tuning.metrics import MetricsLog
from workers.fine_tuning.preparation import Halted, Preparation, Unfit, reports_of
from workers.fine_tuning.results import keep_checkpoint, keep_result
from workers.fine_tuning.spec import PACK_TOKENS, JobSpec
from workers.fine_tuning.trouble import Ending, fate, is_disk_full
from workers.fine_tuning.work_folder import checkpointed_steps, forget_closed, work_folder

log = structlog.get_logger(__name__)

SMALLER = "smaller_micro_batches"
FULL_DISK = "the disk of the training worker is full. Resume the job once there is room; it goes on where it stood"
NO_MEMORY = (
    "The training process ended for want of memory ({how}), also with half the tokens at once. Use shorter rows, a "
    "smaller rank or a smaller model."
)


class JobRunner:
    """The training slots of this process. A message only wakes it: what is due stands in Postgres."""

    def __init__(self, settings: FineTuningSettings) -> None:
        self.settings = settings
        self.stopping = threading.Event()
        self.memory_bytes = memory_of(settings)
        self._reserved = 0
        self._claiming = threading.Lock()
        self._slots = threading.BoundedSemaphore(settings.slots)
        self._woken = threading.Event()

    def wake(self) -> None:
        """Work until nothing is due; with all slots taken, whoever works looks again before it rests."""
        self._woken.set()
        while self._woken.is_set() and self._slots.acquire(blocking=False):
            try:
                self._woken.clear()
                while not self.stopping.is_set() and (job := self._claim()):
                    try:
                        self._run(job)
                    finally:
                        self._reserve(-job.memory_bytes)
                forget_closed(self.settings)
            finally:
                self._slots.release()

    def _claim(self) -> FineTuningJob | None:
        """Reserves the job's memory, so that two at once never need more than there is."""
        with self._claiming:
            with transaction() as tx:
                job = claim_next(tx, Slot(self.settings.lease, self.memory_bytes - self._reserved))
                if job is None:
                    tell_what_does_not_fit(tx, self.memory_bytes)
            if job is not None:  # and its claim is committed
                self._reserved += job.memory_bytes
            return job

    def _reserve(self, change: int) -> None:
        with self._claiming:
            self._reserved += change

    def _run(self, job: FineTuningJob) -> None:
        """One attempt. Whatever goes wrong with it, the job is either ended or given back."""
        try:
            JobAttempt(self, job).run()
        except LostLease:
            log.warning("job_overtaken", job_id=job.id)
        except Exception as error:  # whatever broke, the job must not stay claimed
            log.exception("job_attempt_failed", job_id=job.id)
            full = isinstance(error, StorageFull | InsufficientStorage) or is_disk_full(error)
            ending = Ending(1, "disk_full" if full else None, f"{type(error).__name__} while training")
            self.mourn(job, ending)

    def mourn(self, job: FineTuningJob, ending: Ending) -> None:
        """The training process broke: decide what becomes of its job."""
        try:
            with transaction() as tx:
                row = progress.owned_job(tx, job.id, job.fencing_token)
                what = fate(ending, tried_smaller=SMALLER in row.result)
                log.warning("training_broke", job_id=job.id, how=str(ending), fate=what)
                if what == "rest":
                    rest(tx, row, FULL_DISK)
                elif what == "give_up":
                    finish.fail(tx, job.id, job.fencing_token, "out_of_memory", NO_MEMORY.format(how=ending))
                else:
                    again = "trying again" + (" with half the tokens at once" if what == "smaller" else "")
                    event = Event(f"The training process ended unexpectedly ({ending}); {again}", level="warn")
                    notes = {"last_end": str(ending)} | ({SMALLER: True} if what == "smaller" else {})
                    progress.release(tx, job.id, job.fencing_token, count_attempt=True, events=[event], notes=notes)
        except LostLease:
            log.warning("job_overtaken", job_id=job.id)


class JobAttempt:
    """One claim of one job, from its files to its end."""

    def __init__(self, runner: JobRunner, job: FineTuningJob) -> None:
        self.runner, self.job, self.token = runner, job, job.fencing_token
        self.work = work_folder(runner.settings, job.id)
        self.began = time.monotonic()

    def run(self) -> None:
        preparation = Preparation()
        try:
            with self._lease(preparation):
                spec = self._prepare(preparation.obey)
        except Halted:
            if self._stopped():
                self._forget_work()
            return
        if spec is None:
            self._forget_work()
            return
        child = Child(spec)
        log.info("training_started", job_id=self.job.id, attempt=self.job.attempts, pid=child.pid)
        try:
            with self._lease(child) as keeper:
                ended = self._follow(child)
                ending = child.end()
        finally:
            child.close()
        if keeper.lost:
            raise LostLease(self.job.id)
        if ended:
            self._forget_work()
        elif ended is None:
            self.runner.mourn(self.job, ending)

    def _lease(self, charge: Charge) -> LeaseKeeper:
        settings = self.runner.settings
        yields = settings.yield_to_generation > 0
        return LeaseKeeper(self.job.id, self.token, settings.lease, charge, self.runner.stopping, yields)

    def _prepare(self, obey: Callable[[], None]) -> JobSpec | None:
        """Validate what is not validated yet and resolve `auto`; None when that ended the job. Raises Halted."""
        job = self.job
        with transaction() as tx:
            base = tx.get_one(BaseModel, job.base_id)
            parent = tx.get(Variant, job.parent_variant_id) if job.parent_variant_id else None
            wanted = {"training_file": job.training_file_id, "validation_file": job.validation_file_id}
            files = {name: tx.get_one(File, id) for name, id in wanted.items() if id is not None}
        method = method_of(job.method)
        try:
            reports = reports_of(files, base, method.type, obey)
        except Unfit as unfit:
            self._fail("invalid_training_file", str(unfit), unfit.param)
            return None
        asked = Hyperparameters(**job.hyperparameters)
        rows = training_rows(method, reports["training_file"], base.context_length)
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
                "device": settings.device,
                "devices": settings.devices,
                "pack_tokens": PACK_TOKENS // (2 if SMALLER in self.job.result else 1),
                "yield_to_generation": settings.yield_to_generation,
                "min_free_bytes": settings.min_free_disk_bytes,
                "seconds_between_checkpoints": settings.seconds_between_checkpoints,
            }
        )

    def _follow(self, child: Child) -> bool | None:
        """Write down what the child tells. True: the job ended; False: given back as asked; None: the child broke."""
        with transaction() as tx:
            told = last_reported_step(tx, self.job.id), told_messages(tx, self.job.id)
        metrics = MetricsLog(self.job.id, self.token, *told, checkpointed_steps(self.work))
        for report in child.reports():
            metrics.add(report)
            if report.event == "saved":
                metrics.flush()
                with transaction() as tx:
                    progress.advanced(tx, self.job.id, self.token)
            elif report.event == "epoch":
                keep_checkpoint(self.job, report.data)
            elif report.event == "done":
                metrics.flush()
                keep_result(self.job, report.data, self._timing(child, metrics, report.data.get("peak_memory_bytes")))
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
        """The child stopped as asked: by the owner's cancel or pause, or because this worker shuts down."""
        with transaction() as tx:
            job = progress.owned_job(tx, self.job.id, self.token)
            if job.cancel_requested:
                finish.cancelled(tx, job.id, self.token)
                return True
            if job.pause_requested:
                rest(tx, job)
                return False
            progress.release(tx, self.job.id, self.token, count_attempt=False)
            return False

    def _timing(self, child: Child, metrics: MetricsLog, device_peak: int | None) -> dict[str, float]:
        """What later estimates build on; nothing of a job that was interrupted. `device_peak`: bytes of a device that
        has memory of its own.
        """
        loop = metrics.timing()
        if loop is None or self.token > 1:
            return {}
        child.measure()
        seconds = round(time.monotonic() - self.began, 3)
        return {**loop, "seconds": seconds, "peak_memory_bytes": device_peak or child.peak_memory}

    def _fail(self, code: str, message: str, param: str | None) -> None:
        with transaction() as tx:
            finish.fail(tx, self.job.id, self.token, code, message, param)

    def _forget_work(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
