"""One's fine-tuning jobs: the list, and a job's page with its moving loss curve."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session
from starlette.responses import HTMLResponse, RedirectResponse, Response

from app.billing.metering import CallTarget
from app.database import transaction, utc_now
from app.dependencies import Transaction
from app.errors import AppError, ModelNotFound, NotFound
from app.fine_tuning.find import find_job, list_events, list_jobs, model_names, read_metrics
from app.fine_tuning.finish import cancel
from app.fine_tuning.methods import method_of
from app.fine_tuning.pause import pause, resume
from app.fine_tuning.rules import OPEN
from app.fine_tuning.tables import FineTuningJob
from app.inference.model_target import resolve
from app.variants.archive import archive
from app.variants.export import exported
from app.web.curve import HEIGHT, LEFT, WIDTH, draw
from app.web.forms import MemberForm, submit
from app.web.rendering import page
from app.web.visitors import Member, SignedIn
from app.wire import check_cursor

router = APIRouter()
JOBS, EVENTS = 20, 12


@router.get("/jobs")
def read_jobs(member: SignedIn, tx: Transaction, after: Annotated[str, Query(max_length=40)] | None = None) -> Response:
    jobs = list_jobs(tx, member.account_id, check_cursor(after, "ftjob"), JOBS, {})
    names = model_names(tx, [job.variant_id for job in jobs])
    return member.show("jobs", jobs=jobs[:JOBS], names=names, more=len(jobs) > JOBS)


@router.get("/jobs/{job_id}")
def read_job(job_id: str, member: SignedIn, merging: bool = False) -> Response:
    return job_page(member, job_id, None, merging)


def job_page(member: Member, job_id: str, refusal: AppError | None, merging: bool = False) -> Response:
    with transaction() as tx:
        context = progress_of(tx, member, job_id)
        context["call"] = callable_model(tx, member, context["model"])
        context["adapter"] = not method_of(context["job"].method).makes_base
    return member.show("job", refusal, merging=merging, **context)


def callable_model(tx: Session, member: Member, model: str | None) -> CallTarget | None:
    """How a call of it would be charged; None before there is one, or when its owner has deleted it."""
    try:
        return resolve(tx, member.caller, model).call if model else None
    except ModelNotFound:
        return None


@router.get("/jobs/{job_id}/progress")
def read_progress(job_id: str, member: SignedIn, tx: Transaction) -> HTMLResponse:
    """What moves on the job's page; its script asks for it again and again."""
    return page("progress", **progress_of(tx, member, job_id))


def progress_of(tx: Session, member: Member, job_id: str) -> dict[str, Any]:
    job = find_job(tx, member.account_id, job_id)
    metrics = read_metrics(tx, job.id)
    left = (job.estimated_finish - utc_now()).total_seconds() if job.estimated_finish else None
    return {
        "job": job,
        "open": job.status in OPEN,
        "model": model_names(tx, [job.variant_id]).get(job.variant_id or ""),
        "held_out": held_out_losses(job),
        "samples": job.result.get("samples", []),
        "latest": metrics[-1] if metrics else None,
        "seconds_left": max(left, 0) if left is not None else None,
        "curve": draw(metrics),
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "events": [each for each in list_events(tx, job.id, None, 100) if each.type == "message"][:EVENTS],
    }


def held_out_losses(job: FineTuningJob) -> tuple[float, float] | None:
    """The base's and the fine-tune's own, on examples that neither was trained on."""
    before, after = job.result.get("base_valid_loss"), job.result.get("full_valid_loss")
    return (float(before), float(after)) if before is not None and after is not None else None


@router.post("/jobs/{job_id}/pause")
def pause_job(job_id: str, member: SignedIn, form: MemberForm) -> Response:
    def effect(tx: Session) -> str:
        return f"/jobs/{pause(tx, member.account_id, job_id).id}"

    return submit(effect, lambda refusal: job_page(member, job_id, refusal))


@router.post("/jobs/{job_id}/resume")
def resume_job(job_id: str, member: SignedIn, form: MemberForm) -> Response:
    def effect(tx: Session) -> str:
        return f"/jobs/{resume(tx, member.account_id, job_id).id}"

    return submit(effect, lambda refusal: job_page(member, job_id, refusal))


@router.get("/jobs/{job_id}/download")
def download_model(job_id: str, member: SignedIn, tx: Transaction, merged: bool = False) -> Response:
    """The job's model as a ZIP; for a merged one that a worker has yet to make, the page again, saying so."""
    job = find_job(tx, member.account_id, job_id)
    model = model_names(tx, [job.variant_id]).get(job.variant_id or "")
    if model is None:
        raise NotFound("This job has no model yet.", param="job_id")
    files = exported(tx, member.account_id, model, merged)
    if files is None:
        return RedirectResponse(f"/jobs/{job_id}?merging=1", 303)
    return archive(model, files, merged)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: str, member: SignedIn, form: MemberForm) -> Response:
    def effect(tx: Session) -> str:
        return f"/jobs/{cancel(tx, member.account_id, job_id).id}?done=cancelled"

    return submit(effect, lambda refusal: job_page(member, job_id, refusal))
