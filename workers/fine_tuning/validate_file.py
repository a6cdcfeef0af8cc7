"""The bodies of `fine_tuning.validate_file` and `count_file`: read a training file as the store's own base does, and
count it again in the tokens of another.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import OperationalError

from app.database import transaction
from app.files.counts import TOKENIZER, TROUBLE, add_count, as_counted, begin_count
from app.files.find import find_report
from app.files.tables import File
from app.files.upload import uploads
from app.files.validation import LEASE, begin_validation, end_lease, finish_validation, renew_validation
from app.settings import get_settings
from app.variants.bases import ready_bases
from app.variants.tables import BaseModel
from app.variants.tokenizers import counts_as
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


def count_file(file_id: str, base_id: str) -> None:
    """For estimates. Nothing depends on it: a job on the file counts for itself where nobody has."""
    with transaction() as tx:
        base, report = tx.get(BaseModel, base_id), find_report(tx, file_id)
        if base is None or report is None or as_counted(report.report, counts_as(base)) is not None:
            return
        file = begin_count(tx, file_id)
    if file is None:
        return
    try:
        with leased(file):
            count_for(file, base)
    finally:
        with transaction() as tx:
            end_lease(tx, file_id)


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
    found = report.as_json() | converted | {TOKENIZER: counts_as(base)}
    with transaction() as tx:
        finish_validation(tx, file, found, trouble)
    log.info("file_validated", file_id=file.id, rows=report.rows, problems=report.problem_count)
    return trouble


def trouble_for(file: File, base: BaseModel, obey: Callable[[], None]) -> str | None:
    """Why the file cannot be trained on with this base, if so. Afterwards its report has the base's counts."""
    with transaction() as tx:
        found = find_report(tx, file.id)
    if found is None:
        return check_file(file, base, obey)
    if file.status == "error":
        return file.status_details
    counted = as_counted(found.report, counts_as(base))
    return count_for(file, base, obey) if counted is None else counted.get(TROUBLE)


def count_for(file: File, base: BaseModel, obey: Callable[[], None] = lambda: None) -> str | None:
    """Read a validated file once more, as `base` does."""
    folder = open_store(get_settings().artifacts_url).folder(base.digest or "")
    report = validate(uploads().path(file.digest), Renderer.load(folder), base.context_length or 2048, obey)
    with transaction() as tx:
        add_count(tx, file.id, counts_as(base), report.as_json(), report.trouble())
    log.info("file_counted", file_id=file.id, base=base.id)
    return report.trouble()


def refuse(file: File, trouble: str) -> str:
    """Record that the table cannot be read."""
    report = Report()
    report.add_problem(1, "unreadable", trouble)
    with transaction() as tx:
        finish_validation(tx, file, report.as_json(), trouble)
    log.info("table_refused", file_id=file.id)
    return trouble
