"""The body of `datasets.report`: full reports of files and cleanings, one at a time, each done by a child process."""

import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from app.database import transaction
from app.errors import AppError
from app.files.reports import CLEAN, LostReport, claim, fail, finish, held, next_due, release, renew
from app.files.rules import FINE_TUNE
from app.files.tables import File, FileReport
from app.files.upload import save_file, uploads
from workers.datasets.child import ChildBroke, Work, WorkRefused, run_child

log = structlog.get_logger(__name__)


class Stopping(Exception):
    """The worker shuts down."""


class ReportRunner:
    """One report at a time in this process, however many messages come. A message only wakes it."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._slot = threading.Lock()
        self._woken = threading.Event()

    def wake(self) -> None:
        """Work until nothing is due; while another thread works, it looks again before it rests."""
        self._woken.set()
        while self._woken.is_set() and self._slot.acquire(blocking=False):
            try:
                self._woken.clear()
                while not self.stopping.is_set() and (report_id := self._next()):
                    report_file(report_id, self.stopping)
            finally:
                self._slot.release()

    def _next(self) -> str | None:
        with transaction() as tx:
            return next_due(tx)


def report_file(report_id: str, stopping: threading.Event | None = None) -> None:
    """Idempotent: what is done or taken is left alone."""
    with transaction() as tx:
        report = claim(tx, report_id)
        files = {id: tx.get_one(File, id) for id in (report.file_id, report.against_id) if id} if report else {}
    if report is None:
        return
    try:
        run(report, files, stopping or threading.Event())
    except (WorkRefused, AppError) as refused:
        with transaction() as tx:
            fail(held(tx, report.id, report.attempts), str(refused))
    except Stopping:
        with transaction() as tx:
            release(held(tx, report.id, report.attempts))
    except ChildBroke as error:
        # Its lease runs out, then it is tried again.
        log.warning("report_broke", report_id=report.id, attempt=report.attempts, reason=str(error))
    except LostReport:
        log.warning("report_overtaken", report_id=report.id)


def run(report: FileReport, files: dict[str, File], stopping: threading.Event) -> None:
    """Raises WorkRefused, ChildBroke, Stopping, LostReport, AppError where the outcome cannot be kept."""
    if any(file.deleted_at is not None for file in files.values()):
        raise WorkRefused("The file was deleted.")
    against = files.get(report.against_id or "")
    scratch: AbstractContextManager[Path | None] = uploads().scratch() if report.type == CLEAN else nullcontext(None)
    with scratch as folder:
        work = Work(
            kind=report.type,
            source=uploads().path(files[report.file_id].digest),
            against=uploads().path(against.digest) if against else None,
            target=folder / "rows.jsonl" if folder else None,
            options=report.options,
        )
        found = run_child(work, lambda: keep_on(report, stopping))
        with transaction() as tx:
            row = held(tx, report.id, report.attempts)
            finish(row, found, keep(tx, files[report.file_id], work.target) if work.target else None)
    log.info("file_reported", report_id=report.id, type=report.type)


def keep_on(report: FileReport, stopping: threading.Event) -> None:
    """Raises Stopping, LostReport."""
    if stopping.is_set():
        raise Stopping
    with transaction() as tx:
        renew(tx, report.id, report.attempts)


def keep(tx: Session, file: File, cleaned: Path) -> File:
    """The cleaned rows as a file of their own."""
    with cleaned.open("rb") as stream:
        return save_file(tx, file.account_id, stream, f"{Path(file.filename).stem[:200]}-clean.jsonl", FINE_TUNE)
