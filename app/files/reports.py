"""Full reports of a file and cleanings: asked for here, done by a worker under a lease, written down here."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, func, or_, select
from sqlalchemy.orm import Session

from app.accounts.tables import Account
from app.database import utc_now
from app.errors import InvalidTrainingFile, InvalidValue, NotFound, RateLimited
from app.files.find import find_file
from app.files.rules import FINE_TUNE
from app.files.structure import table_format
from app.files.tables import File, FileReport
from app.tasks import DATASETS_QUEUE, TaskName, enqueue

REPORT, CLEAN = "report", "clean"
CHECKS = ("duplicates", "language", "personal_data", "secrets", "profanity", "balance")
OPEN = ("queued", "running")
MOST_OPEN, MOST_KEPT, MAX_ATTEMPTS = 3, 20, 3
LEASE = timedelta(seconds=30)


class LostReport(Exception):
    """The report was taken over by another worker, or is gone."""


def ask(
    tx: Session, account_id: str, file_id: str, type: str, options: dict[str, Any], against: str | None = None
) -> FileReport:
    """Have a worker do it. Raises NotFound, InvalidTrainingFile, InvalidValue, RateLimited."""
    file = rows_file(tx, account_id, file_id, "file_id")
    if against is not None:
        rows_file(tx, account_id, against, "against")
    if "leakage" in options.get("rules", ()) and against is None:
        raise InvalidValue("The rule 'leakage' needs a file to compare with.", param="against")
    check_open(tx, account_id)
    forget_older(tx, file)
    report = FileReport(account_id=account_id, file_id=file.id, against_id=against, type=type, options=options)
    tx.add(report)
    tx.flush()
    enqueue(tx, TaskName.REPORT_FILE, {"report_id": report.id}, DATASETS_QUEUE)
    return report


def rows_file(tx: Session, account_id: str, file_id: str, param: str) -> File:
    """A file of rows, of the caller."""
    file = find_file(tx, account_id, file_id, param=param, share=True)
    if file.purpose != FINE_TUNE:
        raise InvalidTrainingFile(f"The purpose of {file_id} is not '{FINE_TUNE}'.", param=param)
    if table_format(file.filename) is not None:
        raise InvalidTrainingFile(f"{file_id} is a table that is still being turned into rows; wait.", param=param)
    return file


def check_open(tx: Session, account_id: str) -> None:
    """Requests of one account wait for each other here, so that the limit holds."""
    tx.execute(select(Account.id).where(Account.id == account_id).with_for_update(key_share=True))
    query = select(func.count()).where(FileReport.account_id == account_id, FileReport.status.in_(OPEN))
    if int(tx.scalar(query) or 0) >= MOST_OPEN:
        raise RateLimited(f"You may have {MOST_OPEN} unfinished reports; wait for one to end.", retry_after=10)


def forget_older(tx: Session, file: File) -> None:
    """Only the newest MOST_KEPT reports of a file are kept."""
    query = select(FileReport.id).where(FileReport.file_id == file.id).order_by(FileReport.id.desc())
    old = list(tx.scalars(query.offset(MOST_KEPT - 1)))
    tx.execute(delete(FileReport).where(FileReport.id.in_(old), FileReport.status.not_in(OPEN)))


def list_reports(tx: Session, file_id: str) -> Sequence[FileReport]:
    """Newest first."""
    query = select(FileReport).where(FileReport.file_id == file_id).order_by(FileReport.id.desc())
    return tx.scalars(query.limit(MOST_KEPT)).all()


def find_file_report(tx: Session, account_id: str, file_id: str, report_id: str) -> FileReport:
    """Raises NotFound."""
    file = find_file(tx, account_id, file_id)
    report = tx.get(FileReport, report_id)
    if report is None or report.file_id != file.id:
        raise NotFound(f"No such report: {report_id}", param="report_id")
    return report


def claim(tx: Session, report_id: str) -> FileReport | None:
    """Take a due report; None when it is done, taken, or has failed too often. A second message does no harm."""
    report = tx.get(FileReport, report_id, with_for_update=True)
    if report is None or report.status not in OPEN or (report.lease_until and report.lease_until > utc_now()):
        return None
    if report.attempts >= MAX_ATTEMPTS:
        fail(report, "The file could not be read within this store's limits.")
        return None
    report.status, report.attempts, report.lease_until = "running", report.attempts + 1, utc_now() + LEASE
    return report


def next_due(tx: Session) -> str | None:
    """The id of the report that waits longest."""
    query = select(FileReport.id).where(FileReport.status.in_(OPEN), unclaimed()).order_by(FileReport.id)
    return tx.scalar(query.limit(1))


def unclaimed() -> ColumnElement[bool]:
    return or_(FileReport.lease_until.is_(None), FileReport.lease_until < utc_now())


def release(report: FileReport) -> None:
    """Back into the queue, as if this attempt had not been."""
    report.status, report.lease_until, report.attempts = "queued", None, report.attempts - 1


def held(tx: Session, report_id: str, attempt: int) -> FileReport:
    """The report of this attempt. Raises LostReport."""
    report = tx.get(FileReport, report_id, with_for_update=True)
    if report is None or report.status != "running" or report.attempts != attempt:
        raise LostReport(report_id)
    return report


def renew(tx: Session, report_id: str, attempt: int) -> None:
    held(tx, report_id, attempt).lease_until = utc_now() + LEASE


def finish(report: FileReport, result: dict[str, Any], output: File | None) -> None:
    report.status, report.result, report.finished_at = "succeeded", result, utc_now()
    report.output_file_id = output.id if output else None


def fail(report: FileReport, error: str) -> None:
    report.status, report.error, report.finished_at = "failed", error, utc_now()


def resend_reports(tx: Session, older_than: datetime) -> int:
    """Send again what waits since before `older_than`, and what a dead worker left."""
    query = select(FileReport.id).where(FileReport.status.in_(OPEN), FileReport.created_at < older_than, unclaimed())
    ids = list(tx.scalars(query.limit(500)))
    for report_id in ids:
        enqueue(tx, TaskName.REPORT_FILE, {"report_id": report_id}, DATASETS_QUEUE)
    return len(ids)
