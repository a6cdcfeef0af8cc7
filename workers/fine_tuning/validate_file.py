"""The body of `fine_tuning.validate_file`: count a training file with the tokenizer of the store's own base."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import OperationalError

from app.database import transaction
from app.files.tables import File
from app.files.upload import uploads
from app.files.validation import LEASE, begin_validation, finish_validation, renew_validation
from app.settings import get_settings
from app.variants.bases import ready_bases
from app.variants.tables import BaseModel
from models_registry.prompt import Renderer
from models_registry.store import open_store
from workers.datasets.child import WorkRefused
from workers.datasets.table import Overtaken, convert_table
from workers.fine_tuning.dataset import Report, validate

log = structlog.get_logger(__name__)


def validate_file(file_id: str) -> None:
    """Without any base yet the file stays `uploaded`; upkeep, or the first job on it, asks again."""
    with transaction() as tx:
        bases = ready_bases(tx)
        if not bases:
            return
        default = get_settings().base.default_id
        base = next((each for each in bases if each.id == default), bases[0])
        file = begin_validation(tx, file_id)
    if file is not None:
        with leased(file):
            check_file(file, base)


@contextmanager
def leased(file: File) -> Iterator[None]:
    """Nobody else begins to validate the file meanwhile, however long it takes."""
    done = threading.Event()
    keeper = threading.Thread(target=keep_lease, args=(file.id, done), name=f"lease-{file.id}", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()


def keep_lease(file_id: str, done: threading.Event) -> None:
    while not done.wait(LEASE.total_seconds() / 3):
        try:
            with transaction() as tx:
                renew_validation(tx, file_id)
        except OperationalError as error:
            log.warning("lease_not_renewed", file_id=file_id, error=type(error).__name__)


def check_file(file: File, base: BaseModel, obey: Callable[[], None] = lambda: None) -> str | None:
    """Validate for `base` and record the report; returns why the file cannot be trained on, if so. `obey` is called at
    each line and may raise.
    """
    folder = open_store(get_settings().artifacts_url).folder(base.digest or "")
    try:
        converted = convert_table(file)
    except WorkRefused as refused:
        return refuse(file, str(refused))
    except Overtaken:
        log.warning("validation_overtaken", file_id=file.id)
        return None
    report = validate(uploads().path(file.digest), Renderer.load(folder), base.context_length or 2048, obey)
    trouble = report.trouble()
    with transaction() as tx:
        finish_validation(tx, file, report.as_json() | converted, trouble)
    log.info("file_validated", file_id=file.id, rows=report.rows, problems=report.problem_count)
    return trouble


def refuse(file: File, trouble: str) -> str:
    """Record that the table cannot be read."""
    report = Report()
    report.add_problem(1, "unreadable", trouble)
    with transaction() as tx:
        finish_validation(tx, file, report.as_json(), trouble)
    log.info("table_refused", file_id=file.id)
    return trouble
