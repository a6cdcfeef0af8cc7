"""A fine-tuning job as it runs, in the terminal: a bar with loss and ETA, then the loss curve as a line of blocks."""

import time
from collections.abc import Iterator, Sequence

import httpx
from openai import APIConnectionError, OpenAI, Stream
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

PERIOD = 0.7
BLOCKS = "▁▂▃▄▅▆▇█"
FINAL = ("succeeded", "failed", "cancelled")


def watch_job(client: OpenAI, job_id: str, console: Console) -> FineTuningJob:
    """Until it ends, event by event as the store tells them."""
    losses: list[float] = []
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("waiting for a worker", total=None)
        for event in events(client, job_id):
            data = event.data if isinstance(event.data, dict) else {}
            if event.type == "metrics" and "train_loss" in data:
                losses.append(float(data["train_loss"]))
                told = f"loss {losses[-1]:.3f}  {eta(data.get('eta_seconds'))}"
                progress.update(bar, description=told, completed=data["step"], total=data.get("total_steps"))
            elif event.type != "metrics":
                console.print(f"  [dim]{event.message}[/dim]")
    if losses:
        console.print(f"  training loss {losses[0]:.3f} {curve(losses)} {losses[-1]:.3f}")
    return client.fine_tuning.jobs.retrieve(job_id)


def events(client: OpenAI, job_id: str) -> Iterator[FineTuningJobEvent]:
    """Each once, until the job has ended; a broken connection goes on behind the last one heard."""
    heard: dict[str, str] = {}
    while True:
        try:
            with client.get(
                f"/fine_tuning/jobs/{job_id}/events",
                cast_to=FineTuningJobEvent,
                options={"params": {"stream": "true", **heard}},
                stream=True,
                stream_cls=Stream[FineTuningJobEvent],
            ) as stream:
                for event in stream:
                    heard["after"] = event.id
                    yield event
        except (APIConnectionError, httpx.TransportError):
            time.sleep(PERIOD)
            continue
        if client.fine_tuning.jobs.retrieve(job_id).status in FINAL:
            return


def eta(seconds: object) -> str:
    return f"{float(seconds):.0f} s left" if isinstance(seconds, int | float) else ""


def curve(losses: Sequence[float], width: int = 48) -> str:
    """Averages of equal stretches, drawn as blocks from lowest to highest."""
    size = max(len(losses) / width, 1)
    groups = [losses[int(at * size) : int((at + 1) * size)] for at in range(min(width, len(losses)))]
    means = [sum(group) / len(group) for group in groups if group]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)
