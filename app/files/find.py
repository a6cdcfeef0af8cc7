"""Files of one account: a foreign id, a deleted file and an unknown id read the same."""

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from app.database import utc_now
from app.errors import NotFound
from app.files.rules import RESULTS
from app.files.tables import DatasetReport, File


def live_files(account_id: str) -> Select[File]:
    return select(File).where(
        File.account_id == account_id,
        File.deleted_at.is_(None),
        or_(File.expires_at.is_(None), File.expires_at > utc_now()),
    )


def find_file(tx: Session, account_id: str, file_id: str, *, param: str = "file_id", share: bool = False) -> File:
    """Raises NotFound. `share` keeps the file from being deleted until the transaction ends."""
    query = live_files(account_id).where(File.id == file_id)
    file = tx.scalar(query.with_for_update(read=True) if share else query)
    if file is None:
        raise NotFound(f"No such file: {file_id}", param=param)
    return file


def list_files(
    tx: Session, account_id: str, purpose: str | None, after: str | None, limit: int, newest_first: bool = True
) -> list[File]:
    """Up to `limit + 1` files past the cursor `after`."""
    query = live_files(account_id)
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    if after is not None:
        query = query.where(File.id < after if newest_first else File.id > after)
    return list(tx.scalars(query.order_by(File.id.desc() if newest_first else File.id).limit(limit + 1)))


def used_bytes(tx: Session, account_id: str) -> int:
    """What the account's files occupy of its quota; the figures that trainings left are free."""
    query = select(func.coalesce(func.sum(File.bytes), 0)).where(File.purpose != RESULTS)
    return int(tx.scalar(query.where(File.account_id == account_id, File.deleted_at.is_(None))) or 0)


def find_report(tx: Session, file_id: str) -> DatasetReport | None:
    return tx.get(DatasetReport, file_id)
