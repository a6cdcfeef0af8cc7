"""Creating a job: everything that can be refused is refused here, and the worst-case price is set aside."""

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts.tables import Account
from app.billing.holds import hold
from app.errors import InsufficientFunds, InsufficientQuota, InvalidHyperparameter, InvalidTrainingFile, RateLimited
from app.files.counts import TROUBLE, as_counted
from app.files.find import find_file, find_report
from app.files.rules import FINE_TUNE
from app.files.structure import table_format
from app.files.tables import File
from app.fine_tuning.changes import check_changes
from app.fine_tuning.estimate import Expectation, Work, expect
from app.fine_tuning.events import Event, add_events
from app.fine_tuning.finish import KIND
from app.fine_tuning.methods import Method, block_tokens, training_rows, wrong_rows
from app.fine_tuning.rules import (
    OPEN,
    Hyperparameters,
    looked_tokens,
    most_tokens,
    needs_held_out_rows,
    resolve,
    training_price,
)
from app.fine_tuning.size import check_size
from app.fine_tuning.tables import FineTuningJob
from app.fine_tuning.wake import wake_worker
from app.ids import new_id
from app.settings import get_settings
from app.tasks import DATASETS_QUEUE, TaskName, enqueue
from app.variants.bases import base_of, find_ready_base
from app.variants.tables import BaseModel, Variant
from app.variants.tokenizers import counts_as, known_tokens
from app.variants.variants import find_variant

# Of a file not yet validated; only the expected number of steps follows from it.
TOKENS_PER_ROW = 100


@dataclass(frozen=True)
class JobRequest:
    """A checked request. `seed` None: the store picks one."""

    model: str
    training_file: str
    validation_file: str | None
    hyperparameters: Hyperparameters
    suffix: str | None
    seed: int | None
    metadata: dict[str, str]
    method: Method = field(default_factory=Method)
    priority: int = 0


@dataclass(frozen=True)
class Chosen:
    """A file of a request, with what validation found once it has looked; `exact`: in the tokens of the job's base."""

    file: File
    report: dict[str, Any] | None
    exact: bool


@dataclass(frozen=True)
class Plan:
    """What a request comes to: `tokens` and `price` (micros) at most, `expected` time and memory."""

    base: BaseModel
    parent: Variant | None
    files: tuple[Chosen, ...]
    tokens: int
    price: int
    expected: Expectation


def start(tx: Session, account_id: str, request: JobRequest) -> FineTuningJob:
    """Raises ModelNotFound, NotFound, InvalidTrainingFile, RateLimited, InsufficientQuota."""
    check_open_jobs(tx, account_id)
    plan = plan_job(tx, account_id, request)
    job_id = new_id("ftjob")
    try:
        hold(tx, account_id, plan.price, KIND, job_id)
    except InsufficientFunds as error:
        raise InsufficientQuota(f"This job may cost {plan.price} micros; top up your wallet.") from error
    job = FineTuningJob(
        id=job_id,
        account_id=account_id,
        model=request.model,
        base_id=plan.base.id,
        parent_variant_id=plan.parent.id if plan.parent and plan.parent.is_adapter else None,
        training_file_id=request.training_file,
        validation_file_id=request.validation_file,
        status="queued" if plan.files[0].report else "validating_files",
        method=request.method.as_json(),
        hyperparameters=asdict(request.hyperparameters),
        suffix=request.suffix,
        seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
        metadata_=request.metadata,
        held_micros=plan.price,
        priority=request.priority,
        memory_bytes=plan.expected.memory_bytes,
    )
    tx.add(job)
    tx.flush()
    messages = [f"Created fine-tuning job: {job_id}", f"Validating training file: {request.training_file}"]
    add_events(tx, job_id, [Event(message) for message in messages])
    wake_worker(tx)
    return job


def plan_job(tx: Session, account_id: str, request: JobRequest) -> Plan:
    """Which base, which files, at most how many tokens at what price."""
    parent = find_variant(tx, account_id, request.model) if request.model.startswith("ft:") else None
    base = base_of(tx, parent) if parent else find_ready_base(tx, request.model)
    method, asked = request.method, request.hyperparameters
    check_changes(method, base.parameters or 0, base.shape, partial(known_tokens, base))
    check_size(method, base.parameters or 0, base.shape)
    files = chosen_files(tx, account_id, request, base)
    file, report = files[0].file, files[0].report
    rows = training_rows(method, report, base.context_length) if report else None
    likely = most_tokens(asked, file.bytes, rows, report["tokens"] if report else None)
    # A new tokenizer counts otherwise than the base's.
    exact = files[0].exact and method.type != "pretraining"
    most = likely if exact else most_tokens(asked, file.bytes, None, None)
    rows = rows or max(1, most // TOKENS_PER_ROW)
    resolved = resolve(asked, rows)
    steps = resolved.n_epochs * -(-rows // resolved.batch_size)
    looked = looked_tokens(resolved, steps, *held_out(files[1:], method, base.context_length))
    if method.type == "dpo":
        looked += sum(likely_tokens(each) for each in files)
    expected = expect(
        tx, base, method, Work(likely, steps, looked, longest_row(files, method, base.context_length or 0))
    )
    price = training_price(most, base.training_micros_per_million_tokens)
    return Plan(base, parent, files, most, price, expected)


def longest_row(files: Sequence[Chosen], method: Method, context_length: int) -> int:
    """Its tokens as training sees it; 0 where no file has been looked at yet."""
    found = max((each.report.get("tokens_max", 0) for each in files if each.report), default=0)
    return block_tokens(method, context_length) or min(found, context_length)


def held_out(files: Sequence[Chosen], method: Method, context_length: int | None) -> tuple[int, int]:
    """About how many tokens and rows are held out."""
    tokens = sum(likely_tokens(each) for each in files)
    rows = sum(training_rows(method, each.report, context_length) for each in files if each.report)
    return tokens, rows or tokens // TOKENS_PER_ROW


def likely_tokens(file: Chosen) -> int:
    return int(file.report["tokens"]) if file.report else file.file.bytes


def chosen_files(tx: Session, account_id: str, request: JobRequest, base: BaseModel) -> tuple[Chosen, ...]:
    """The training file first. Raises NotFound, InvalidTrainingFile, InvalidHyperparameter."""
    needing = needs_held_out_rows(request.hyperparameters)
    if needing and request.validation_file is None:
        raise InvalidHyperparameter(f"{needing} needs a validation_file.", param=f"hyperparameters.{needing}")
    wanted = {"training_file": request.training_file, "validation_file": request.validation_file}
    found = {param: training_file(tx, account_id, id, param) for param, id in wanted.items() if id is not None}
    return tuple(chosen(tx, request.method, file, base, param) for param, file in found.items())


def chosen(tx: Session, method: Method, file: File, base: BaseModel, param: str) -> Chosen:
    """Raises InvalidTrainingFile where its rows do not suit the method or the base."""
    found = find_report(tx, file.id)
    if found is None:
        return Chosen(file, None, False)
    counted = as_counted(found.report, counts_as(base))
    report = counted or found.report
    if trouble := report.get(TROUBLE) or wrong_rows(method.type, report):
        raise InvalidTrainingFile(trouble, param=param)
    return Chosen(file, report, counted is not None)


def ask_to_count(tx: Session, plan: Plan) -> None:
    """Have a worker count the files in the tokens of the plan's base, so that the next plan is exact."""
    for each in plan.files:
        if each.report and not each.exact:
            payload = {"file_id": each.file.id, "base_id": plan.base.id}
            enqueue(tx, TaskName.COUNT_FILE, payload, DATASETS_QUEUE)


def training_file(tx: Session, account_id: str, file_id: str, param: str) -> File:
    """A file of the caller that can be trained on; it cannot be deleted before the job's row is committed."""
    file = find_file(tx, account_id, file_id, param=param, share=True)
    if file.purpose != FINE_TUNE:
        raise InvalidTrainingFile(f"The purpose of {file_id} is not '{FINE_TUNE}'.", param=param)
    if file.status == "error":
        raise InvalidTrainingFile(f"{file_id}: {file.status_details}", param=param)
    if table_format(file.filename) is not None:
        # Its bytes say nothing about its tokens, so no price could be held.
        raise InvalidTrainingFile(f"{file_id} is a table that is still being turned into rows; wait.", param=param)
    return file


def check_open_jobs(tx: Session, account_id: str) -> None:
    """Creations of one account wait for each other here, so that the limit holds."""
    tx.execute(select(Account.id).where(Account.id == account_id).with_for_update(key_share=True))
    query = select(func.count()).where(FineTuningJob.account_id == account_id, FineTuningJob.status.in_(OPEN))
    most = get_settings().fine_tuning.max_jobs_per_account
    if int(tx.scalar(query) or 0) >= most:
        raise RateLimited(f"You may have {most} unfinished fine-tuning jobs; wait for one to end.", retry_after=30)
