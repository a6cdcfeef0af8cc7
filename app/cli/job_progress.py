"""A fine-tuning job as it runs, in the terminal: a bar with loss and ETA, then the loss curve as a line of blocks."""

import time
from collections.abc import Sequence

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

PERIOD = 0.7
BLOCKS = "▁▂▃▄▅▆▇█"
FINAL = ("succeeded", "failed", "cancelled")


def watch_job(client: OpenAI, job_id: str, console: Console) -> FineTuningJob:
    """Until it ends. Asks for the events that came since the last look."""
    losses: list[float] = []
    seen: set[str] = set()
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("waiting for a worker", total=None)
        while True:
            job = client.fine_tuning.jobs.retrieve(job_id)
            for event in reversed(client.fine_tuning.jobs.list_events(job_id, limit=100).data):
                if event.id in seen:
                    continue
                seen.add(event.id)
                data = event.data if isinstance(event.data, dict) else {}
                if event.type == "metrics" and "train_loss" in data:
                    losses.append(float(data["train_loss"]))
                    told = f"loss {losses[-1]:.3f}  {eta(data.get('eta_seconds'))}"
                    progress.update(bar, description=told, completed=data["step"], total=data.get("total_steps"))
                elif event.type != "metrics":
                    console.print(f"  [dim]{event.message}[/dim]")
            if job.status in FINAL:
                break
            time.sleep(PERIOD)
    if losses:
        console.print(f"  training loss {losses[0]:.3f} {curve(losses)} {losses[-1]:.3f}")
    return job


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
