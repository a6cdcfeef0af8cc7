"""Commands about files: upload, reports of them, cleaning."""

import time
from pathlib import Path
from typing import Annotated

import typer

from app.cli.output import AsJson, show
from app.cli.store_client import Json, StoreClient
from app.cli.talking import talking

files = typer.Typer(help="Uploaded files.", no_args_is_help=True)

Against = Annotated[str | None, typer.Option(help="Id of a file that must share no rows with this one.")]


@files.command("upload")
def upload_file(path: Path, purpose: str = "fine-tune", as_json: AsJson = False) -> None:
    """Send a file (JSONL, CSV or Parquet for training); prints its id."""
    with talking() as client, path.open("rb") as source:
        file = client.openai.files.create(file=source, purpose=purpose)  # type: ignore[arg-type]
        show(file.model_dump(), as_json, file.id)


@files.command("list")
def list_files(as_json: AsJson = False) -> None:
    """The newest hundred."""
    with talking() as client:
        answer = client.get("/v1/files", limit=100)
        show(answer, as_json, "\n".join(f"{f['id']}  {f['bytes']:>10}  {f['filename']}" for f in answer["data"]))


@files.command("report")
def file_report(file_id: str, as_json: AsJson = False) -> None:
    """What validation found, by line."""
    with talking() as client:
        answer = client.get(f"/v1/files/{file_id}/report")
        show(answer, as_json, "\n".join(report_lines(answer)))


@files.command("check")
def check_file(
    file_id: str,
    against: Against = None,
    check: Annotated[list[str] | None, typer.Option(help="One of the checks; all when left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look for duplicates, leaks, languages, personal data, secrets, profanity and lopsided classes."""
    with talking() as client:
        body: Json = {"against": against} | ({"checks": check} if check else {})
        report = wait_for(client, client.post(f"/v1/files/{file_id}/reports", body))
        show(report, as_json, "\n".join(full_report_lines(report)))
        raise typer.Exit(0 if report["status"] == "succeeded" else 1)


@files.command("clean")
def clean_file(
    file_id: str,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="What to drop: duplicates, near_duplicates, leakage, personal_data, secrets, profanity; "
            "control_characters are taken out of their rows."
        ),
    ] = None,
    language: Annotated[str | None, typer.Option(help="Drop rows in other languages than this, say en.")] = None,
    against: Against = None,
    as_json: AsJson = False,
) -> None:
    """Make a new file without the rows that the rules drop; prints what went and the new file's id."""
    with talking() as client:
        body: Json = {"rules": rule or [], "language": language, "against": against}
        report = wait_for(client, client.post(f"/v1/files/{file_id}/clean", body))
        show(report, as_json, "\n".join(clean_lines(report)))
        raise typer.Exit(0 if report["status"] == "succeeded" else 1)


def wait_for(client: StoreClient, report: Json) -> Json:
    """Ask until the worker is done."""
    while report["status"] in ("queued", "running"):
        time.sleep(0.3)
        report = client.get(f"/v1/files/{report['file_id']}/reports/{report['id']}")
    return report


def report_lines(answer: Json) -> list[str]:
    report = answer["report"]
    if report is None:
        return [f"{answer['file_id']}: {answer['status']}"]
    head = f"{answer['file_id']}: {answer['status']}, {report['rows']} rows, {report['tokens']} tokens"
    return [head, *(f"line {each['line']}: {each['message']}" for each in report["problems"])]


def full_report_lines(report: Json) -> list[str]:
    if report["status"] != "succeeded":
        return [f"{report['status']}: {report['error']}"]
    found = report["result"]["findings"]
    return [f"{report['result']['rows']} rows", *(finding_line(code, each) for code, each in found.items())]


def clean_lines(report: Json) -> list[str]:
    if report["status"] != "succeeded":
        return [f"{report['status']}: {report['error']}"]
    result = report["result"]
    dropped = [finding_line(code, each) for code, each in result["dropped"].items()]
    return [f"kept {result['kept']} rows, mended {result['mended']}; dropped:", *dropped, report["output_file"]]


def finding_line(code: str, found: Json) -> str:
    lines = ", ".join(map(str, found["lines"][:10]))
    return f"{code}: {found['rows']} rows, lines {lines}{' …' if found['rows'] > 10 else ''}"
