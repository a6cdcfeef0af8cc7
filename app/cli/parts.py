"""`gptstore up` and the parts it is made of, one command each, for production."""

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from app.settings import get_settings

worker = typer.Typer(help="Run one worker in the foreground.", no_args_is_help=True)

# Workers are started as programs, never imported: app/ must stay free of torch.
MODULES = {
    "generation": "workers.generation.main",
    "bases": "workers.bases.main",
    "fine-tuning": "workers.fine_tuning.main",
    "upkeep": "workers.upkeep.main",
}


# How long a thread of a finished product waits awake for the next. OpenMP's own 300,000 turns are milliseconds: beside
# any other busy process a step of hundreds of products then takes seconds (measured: 3 s for 0.04 s).
SPINS = "10000"


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(api)
    app.add_typer(worker, name="worker")
    app.command()(upkeep)
    app.command()(migrate)


def up(
    port: Annotated[int, typer.Option(help="Port of the API and the pages.")] = 8000,
    data: Annotated[Path | None, typer.Option(envvar="GPTSTORE_DATA", help="Where everything is kept.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="The first time, play the whole loop once.")] = False,
) -> None:
    """Everything on this machine, in the foreground; Ctrl-C stops all."""
    from app.local.services import ServiceError
    from app.local.up import default_data_directory
    from app.local.up import up as run

    try:
        code = run(port, data or default_data_directory(), demo)
    except ServiceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    raise typer.Exit(code)


def api() -> None:
    """The API and the pages (GPTSTORE_API__HOST, GPTSTORE_API__PORT)."""
    from app.serve import serve

    serve()


@worker.command()
def generation() -> None:
    """Serve one base and its fine-tunes (GPTSTORE_GENERATION__BASE)."""
    become(MODULES["generation"])


@worker.command()
def bases() -> None:
    """Start a generation worker for each other base that is called (GPTSTORE_GENERATION__OTHER_BASES at once)."""
    become(MODULES["bases"])


@worker.command("fine-tuning")
def fine_tuning() -> None:
    """Train, validate uploads, import bases."""
    become(MODULES["fine-tuning"])


def upkeep() -> None:
    """Resend lost tasks, release stale holds, expire files."""
    become(MODULES["upkeep"])


def migrate() -> None:
    """Bring the database of GPTSTORE_DATABASE_URL up to date."""
    from app.local.migrate import migrate as run

    if not get_settings().database_url:
        typer.echo("error: set GPTSTORE_DATABASE_URL", err=True)
        raise typer.Exit(1)
    run()
    typer.echo("the database is up to date")


def become(module: str) -> NoReturn:
    """Turn this process into the worker: same pid, so signals reach it."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606 (no shell is wanted)
