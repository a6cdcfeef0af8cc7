"""/v1/fine_tuning: jobs as OpenAI has them, and an estimate."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import StreamingResponse

from app.accounts.authenticate import Caller
from app.billing.wallet import read_wallet
from app.dependencies import Transaction, requires
from app.fine_tuning.bell import Bell
from app.fine_tuning.event_stream import stream_events
from app.fine_tuning.find import find_job, list_checkpoints, list_events, list_jobs, model_names
from app.fine_tuning.finish import cancel
from app.fine_tuning.pause import pause, resume
from app.fine_tuning.rules import check_metadata
from app.fine_tuning.schemas import CheckpointOut, EstimateOut, EventOut, JobCreate, JobOut
from app.fine_tuning.start import ask_to_count, plan_job, start
from app.idempotency import idempotent
from app.wire import Limit, Page, check_cursor, page_of

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
Trainer = Annotated[Caller, Depends(requires("fine_tuning"))]


@router.post("/jobs", response_model=JobOut)
def create_job(body: JobCreate, tx: Transaction, caller: Trainer, request: Request) -> Response:
    def effect() -> JobOut:
        return JobOut.of(start(tx, caller.account_id, body.request()), {})

    return idempotent(tx, request, caller, body, 200, effect)


@router.post("/estimate")
def estimate(body: JobCreate, tx: Transaction, caller: Trainer) -> EstimateOut:
    """What the same request would come to as a job; refused where that would be."""
    plan = plan_job(tx, caller.account_id, body.request())
    ask_to_count(tx, plan)
    return EstimateOut.of(plan, read_wallet(tx, caller.account_id).available_micros)


@router.get("/jobs")
def read_jobs(
    tx: Transaction, caller: Trainer, request: Request, after: str | None = None, limit: Limit = 20
) -> Page[JobOut]:
    """`metadata[key]=value` narrows the list."""
    wanted = {
        name[len("metadata[") : -1]: value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    jobs = list_jobs(tx, caller.account_id, check_cursor(after, "ftjob"), limit, check_metadata(wanted))
    names = model_names(tx, [job.variant_id for job in jobs])
    return page_of([JobOut.of(job, names) for job in jobs], [job.id for job in jobs], limit)


@router.get("/jobs/{job_id}")
def read_job(job_id: str, tx: Transaction, caller: Trainer) -> JobOut:
    job = find_job(tx, caller.account_id, job_id)
    return JobOut.of(job, model_names(tx, [job.variant_id]))


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: str, tx: Transaction, caller: Trainer) -> JobOut:
    return JobOut.of(cancel(tx, caller.account_id, job_id), {})


@router.post("/jobs/{job_id}/pause")
def pause_job(job_id: str, tx: Transaction, caller: Trainer) -> JobOut:
    """It keeps its place and its hold: a running job saves a checkpoint and ends its process within seconds."""
    return JobOut.of(pause(tx, caller.account_id, job_id), {})


@router.post("/jobs/{job_id}/resume")
def resume_job(job_id: str, tx: Transaction, caller: Trainer) -> JobOut:
    """Back into the queue; training goes on from the checkpoint as if it had never stopped."""
    return JobOut.of(resume(tx, caller.account_id, job_id), {})


@router.get("/jobs/{job_id}/events", response_model=Page[EventOut])
def read_events(
    job_id: str,
    tx: Transaction,
    caller: Trainer,
    request: Request,
    after: str | None = None,
    limit: Limit = 20,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Page[EventOut] | StreamingResponse:
    """Newest first. With `stream` as server-sent events, oldest first, until the job has ended: from the event behind
    `after`, or behind the header `Last-Event-ID` with which browsers come back.
    """
    job = find_job(tx, caller.account_id, job_id)
    if stream:
        bell: Bell = request.app.state.bell
        bell.check_room(caller.account_id)
        told = stream_events(bell, caller.account_id, job.id, check_cursor(last_event_id or after, "ftevent"))
        return StreamingResponse(told, media_type="text/event-stream", headers=STREAM_HEADERS)
    events = list_events(tx, job.id, check_cursor(after, "ftevent"), limit)
    return page_of([EventOut.of(event) for event in events], [event.id for event in events], limit)


@router.get("/jobs/{job_id}/checkpoints")
def read_checkpoints(
    job_id: str, tx: Transaction, caller: Trainer, after: str | None = None, limit: Limit = 10
) -> Page[CheckpointOut]:
    job = find_job(tx, caller.account_id, job_id)
    found = list_checkpoints(tx, job.id, check_cursor(after, "ftckpt"), limit)
    names = model_names(tx, [each.variant_id for each in found])
    return page_of([CheckpointOut.of(each, names) for each in found], [each.id for each in found], limit)
