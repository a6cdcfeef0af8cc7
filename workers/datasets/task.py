"""The body of `datasets.report`: a full report of a file or a cleaning of it, done by a child process."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from app.database import transaction
from app.errors import AppError
from app.files.reports import CLEAN, LostReport, claim, fail, finish, held, renew
from app.files.rules import FINE_TUNE
from app.files.tables import File, FileReport
from app.files.upload import save_file, uploads
from workers.datasets.child import Work, WorkRefused, run_child

log = structlog.get_logger(__name__)


def report_file(report_id: str) -> None:
    """Idempotent: what is done or taken is left alone."""
    with transaction() as tx:
        report = claim(tx, report_id)
        files = {id: tx.get_one(File, id) for id in (report.file_id, report.against_id) if id} if report else {}
    if report is None:
        return
    try:
        run(report, files)
    except (WorkRefused, AppError) as refused:
        with transaction() as tx:
            fail(held(tx, report.id, report.attempts), str(refused))
    except LostReport:
        log.warning("report_overtaken", report_id=report.id)


def run(report: FileReport, files: dict[str, File]) -> None:
    """Raises WorkRefused, LostReport, AppError where the outcome cannot be kept."""
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
        found = run_child(work, lambda: keep_lease(report))
        with transaction() as tx:
            row = held(tx, report.id, report.attempts)
            finish(row, found, keep(tx, files[report.file_id], work.target) if work.target else None)
    log.info("file_reported", report_id=report.id, type=report.type)


def keep_lease(report: FileReport) -> None:
    with transaction() as tx:
        renew(tx, report.id, report.attempts)


def keep(tx: Session, file: File, cleaned: Path) -> File:
    """The cleaned rows as a file of their own."""
    with cleaned.open("rb") as stream:
        return save_file(tx, file.account_id, stream, f"{Path(file.filename).stem[:200]}-clean.jsonl", FINE_TUNE)
