"""A table becomes its rows: the bytes of a CSV or Parquet upload are replaced by JSONL, once."""

from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.orm import Session

from app.database import transaction
from app.errors import AppError, NotFound
from app.files.delete import remove_bytes
from app.files.structure import table_format
from app.files.tables import File
from app.files.upload import replace_bytes, uploads
from app.settings import get_settings
from workers.datasets.child import ChildBroke, Work, WorkRefused, run_child

log = structlog.get_logger(__name__)


class Overtaken(Exception):
    """The file was deleted, or another worker has converted it."""


def convert_table(file: File) -> dict[str, Any]:
    """What was converted, for the report; `file` then has its new digest. Nothing for JSONL.

    Raises WorkRefused, Overtaken.
    """
    format = table_format(file.filename)
    if format is None:
        return {}
    table, limit = file.digest, get_settings().api.max_upload_bytes
    with uploads().scratch() as folder:
        rows = folder / "rows.jsonl"
        options: dict[str, Any] = {"format": format, "max_bytes": limit}
        work = Work(kind="convert", source=uploads().path(table), target=rows, options=options)
        try:
            found = run_child(work)
        except ChildBroke as error:
            log.warning("conversion_broke", file_id=file.id, reason=str(error))
            raise WorkRefused("the table could not be read within this store's limits") from error
        try:
            with transaction() as tx:
                keep(tx, file, rows)
        except NotFound as error:
            raise Overtaken(file.id) from error
        except AppError as error:
            raise WorkRefused(error.message) from error
    remove_bytes(table)
    return {"converted": found}


def keep(tx: Session, file: File, rows: Path) -> None:
    with rows.open("rb") as stream:
        kept = replace_bytes(tx, file, stream, Path(file.filename).stem + ".jsonl")
    file.digest, file.bytes, file.filename = kept.digest, kept.bytes, kept.filename
