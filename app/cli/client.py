"""Commands of people who use a store: sellers and buyers."""

import json
import time
from pathlib import Path
from typing import Annotated, cast

import httpx
import openai
import typer
from openai.types.chat import ChatCompletionMessageParam
from rich.console import Console
from rich.table import Table

from app.cli.files import files
from app.cli.job_progress import watch_job
from app.cli.jobs import register_jobs
from app.cli.output import AsJson, show
from app.cli.store_client import DEFAULT_URL, Json, Refused, StoreClient, save_login
from app.cli.talking import talking
from app.dollars import usd

console = Console()


def register(app: typer.Typer) -> None:
    app.add_typer(files, name="files")
    for command in (login, train, publish, search, buy, chat, wallet, demo):
        app.command()(command)
    app.command("top-up")(top_up)
    register_jobs(app)


def login(
    key: Annotated[str, typer.Option(prompt=True, hide_input=True, help="API key, gpts_…")],
    url: Annotated[str, typer.Option(help="Address of the store.")] = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Remember the store and the key for the other commands."""
    try:
        me = StoreClient(url, key).get("/v1/me")
    except (Refused, httpx.HTTPError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    path = save_login(url, key)
    show(me, as_json, f"logged in as {me['account']['handle']} ({path})")


def train(
    path: Path,
    model: Annotated[str, typer.Option(help="A base, or an own ft: model to go on from.")] = "smollm2-135m-instruct",
    validation: Annotated[Path | None, typer.Option(help="Held-out examples.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Part of the new model's name.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Upload, fine-tune and watch the loss fall; prints the new model's name."""
    with talking() as client:
        with path.open("rb") as source:
            training = client.openai.files.create(file=source, purpose="fine-tune").id
        held_out = None
        if validation is not None:
            with validation.open("rb") as source:
                held_out = client.openai.files.create(file=source, purpose="fine-tune").id
        job = client.openai.fine_tuning.jobs.create(
            model=model,
            training_file=training,
            validation_file=held_out,
            suffix=suffix,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs or "auto"}}},
        )
        job = watch_job(client.openai, job.id, Console(stderr=True))
        reason = job.error.message if job.error else ""
        show(job.model_dump(), as_json, job.fine_tuned_model or f"{job.status}: {reason}")
        raise typer.Exit(0 if job.status == "succeeded" else 1)


def publish(
    model: Annotated[str, typer.Argument(help="An own model, ft:…")],
    name: Annotated[str, typer.Option(help="Address of the listing under your handle.")],
    title: Annotated[str, typer.Option()],
    summary: Annotated[str, typer.Option()] = "",
    category: Annotated[str, typer.Option()] = "other",
    license: Annotated[str, typer.Option()] = "apache-2.0",
    system_prompt: Annotated[str | None, typer.Option()] = None,
    access_micros: Annotated[int, typer.Option(help="Price of access; 1,000,000 = 1 USD.")] = 0,
    input_micros: Annotated[int, typer.Option(help="Per million input tokens.")] = 100_000,
    output_micros: Annotated[int, typer.Option(help="Per million output tokens.")] = 300_000,
    as_json: AsJson = False,
) -> None:
    """Offer an own model in the store; waits for the effect check."""
    body: Json = {
        "name": name,
        "title": title,
        "summary": summary or title,
        "description": summary or title,
        "category": category,
        "license": license,
        "model": model,
        "system_prompt": system_prompt,
        "prices": {
            "access_micros": access_micros,
            "input_micros_per_million_tokens": input_micros,
            "output_micros_per_million_tokens": output_micros,
        },
    }
    with talking() as client:
        listing = wait_checked(client, client.post("/v1/listings", body))
        show(listing, as_json, f"{listing['model']}: {listing['status']} {' '.join(listing.get('reasons') or [])}")
        raise typer.Exit(0 if listing["status"] == "published" else 1)


def wait_checked(client: StoreClient, listing: Json) -> Json:
    """Ask until the effect check has decided."""
    while listing["status"] == "checking":
        time.sleep(0.3)
        listing = client.get(f"/v1/listings/{listing['model']}")
    return listing


def search(
    query: Annotated[str, typer.Argument()] = "",
    category: str | None = None,
    limit: int = 20,
    as_json: AsJson = False,
) -> None:
    """Find GPTs."""
    with talking() as client:
        answer = client.get("/v1/listings", q=query, category=category, limit=limit)
    if as_json:
        typer.echo(json.dumps(answer, ensure_ascii=False, indent=2))
        return
    table = Table("model", "title", "access", "rating")
    for row in answer["data"]:
        table.add_row(row["model"], row["title"], access(row["prices"]), str(row["rating"] or "–"))
    console.print(table)


def buy(listing: Annotated[str, typer.Argument(help="handle/name")], as_json: AsJson = False) -> None:
    """Buy access at the price shown now."""
    with talking() as client:
        price = client.get(f"/v1/listings/{listing}")["prices"]["access_micros"]
        body = {"listing": listing, "plan": "access", "expected_price_micros": price}
        purchase = client.post("/v1/purchases", body)
        show(purchase, as_json, f"bought {listing} for {usd(purchase['amount_micros'])}")


def chat(
    model: Annotated[str, typer.Argument(help="handle/name, an own ft:…, or a base")],
    message: Annotated[str | None, typer.Argument(help="Leave out to talk.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
) -> None:
    """Ask a model; the answer streams."""
    history: list[Json] = []
    with talking() as client:
        while True:
            question = message or typer.prompt("you", prompt_suffix="> ")
            history.append({"role": "user", "content": question})
            answer = ""
            stream = client.openai.chat.completions.create(
                model=model,
                messages=cast(list[ChatCompletionMessageParam], history),
                stream=True,
                max_tokens=max_tokens,
            )
            for chunk in stream:
                piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
                answer += piece
                typer.echo(piece, nl=False)
            typer.echo()
            if message:
                return
            history.append({"role": "assistant", "content": answer})


def wallet(
    entries: Annotated[int, typer.Option(help="How many entries to show.")] = 20, as_json: AsJson = False
) -> None:
    """Balance and what moved it."""
    with talking() as client:
        balance = client.get("/v1/wallet")
        rows = client.get("/v1/wallet/entries", limit=entries)["data"]
    if as_json:
        typer.echo(json.dumps({"wallet": balance, "entries": rows}, indent=2))
        return
    console.print(f"available {usd(balance['available_micros'])}   held {usd(balance['held_micros'])}")
    console.print(entries_table(rows))


def entries_table(rows: list[Json]) -> Table:
    table = Table("what", "reference", "micros", "side", "balance after")
    for row in rows:
        table.add_row(
            row["kind"], row["reference"], f"{row['amount_micros']:+,}", row["side"], f"{row['balance_after']:,}"
        )
    return table


def top_up(
    amount_micros: Annotated[int, typer.Argument(min=1)], gateway: str = "sandbox", as_json: AsJson = False
) -> None:
    """Put money into the wallet."""
    with talking() as client:
        answer = client.post("/v1/wallet/top_ups", {"amount_micros": amount_micros, "gateway": gateway})
        show(answer, as_json, f"{answer['id']}: {answer['status']}")


def access(prices: dict[str, int]) -> str:
    return usd(prices["access_micros"]) if prices["access_micros"] else "free"


def demo(
    url: Annotated[str, typer.Option(help="A running store.")] = DEFAULT_URL,
    remember: Annotated[
        Path | None, typer.Option(help="Play only if this file is absent; keep the keys there.")
    ] = None,
) -> None:
    """Play the whole loop once against a running store: train, publish, buy, call, pay."""
    from app.cli.demo import run_demo

    try:
        run_demo(url, remember, console)
    except (Refused, openai.APIError, httpx.HTTPError) as error:
        typer.echo(f"error: {getattr(error, 'message', None) or error}", err=True)
        raise typer.Exit(1) from error
