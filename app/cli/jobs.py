"""`gptstore jobs`: what one's fine-tuning jobs do, and what to do with them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.cli.job_progress import watch_job
from app.cli.output import AsJson, show
from app.cli.store_client import Json, Refused
from app.cli.talking import talking

jobs = typer.Typer(help="Fine-tuning jobs.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(help="ftjob-…")]


def register_jobs(app: typer.Typer) -> None:
    app.add_typer(jobs, name="jobs")


@jobs.command("list")
def list_jobs(as_json: AsJson = False) -> None:
    """The newest twenty."""
    with talking() as client:
        answer = client.get("/v1/fine_tuning/jobs", limit=20)
        show(answer, as_json, "\n".join(line(job) for job in answer["data"]))


@jobs.command()
def watch(job_id: JobId, as_json: AsJson = False) -> None:
    """Follow a job to its end; the loss is drawn as it falls."""
    with talking() as client:
        job = watch_job(client.openai, job_id, Console(stderr=True))
        show(job.model_dump(), as_json, job.fine_tuned_model or job.status)


@jobs.command()
def download(
    job_id: JobId,
    path: Annotated[Path | None, typer.Argument(help="Where to write the ZIP.")] = None,
    merged: Annotated[bool, typer.Option(help="Adapter and base as one model.")] = False,
    as_json: AsJson = False,
) -> None:
    """The job's model: an adapter as PEFT reads it, whole weights as a Hugging Face folder."""
    with talking() as client:
        model = client.get(f"/v1/fine_tuning/jobs/{job_id}")["fine_tuned_model"]
        if model is None:
            raise Refused("This job has no model yet.")
        target = path or Path(f"{model.replace(':', '-')}{'-merged' if merged else ''}.zip")
        client.download(f"/v1/artifacts/{model}/content", target, format="merged" if merged else "plain")
        show({"model": model, "path": str(target), "bytes": target.stat().st_size}, as_json, str(target))


@jobs.command()
def pause(job_id: JobId, as_json: AsJson = False) -> None:
    """Set it aside; it keeps its place and its hold."""
    act(job_id, "pause", as_json)


@jobs.command()
def resume(job_id: JobId, as_json: AsJson = False) -> None:
    """Go on where it stood."""
    act(job_id, "resume", as_json)


@jobs.command()
def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """End it; nothing is charged."""
    act(job_id, "cancel", as_json)


def act(job_id: str, verb: str, as_json: bool) -> None:
    with talking() as client:
        job = client.post(f"/v1/fine_tuning/jobs/{job_id}/{verb}", {})
        show(job, as_json, said(job))


def line(job: Json) -> str:
    return f"{job['id']}  {job['status']:<16}  {job['fine_tuned_model'] or job['model']}"


def said(job: Json) -> str:
    coming = "pausing" if job["pause_requested"] else "cancelling" if job["cancel_requested"] else ""
    return f"{job['id']}: {coming if coming and job['status'] == 'running' else job['status']}"
