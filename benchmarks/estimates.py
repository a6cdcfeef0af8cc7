"""`python -m benchmarks.estimates`: what jobs were said to take, and what they took, in a store of their own.

The first job is estimated by arithmetic, the others from those before them. Each is estimated once its files are
counted, then trained by an idle worker; `truth` is the time from the job's creation to its model. Nothing else may run
meanwhile.
"""

import argparse
import json
import secrets
import time
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from app.cli.demo_data import tech_support
from app.cli.store_client import Json, StoreClient
from benchmarks.machine import describe
from benchmarks.store import BASE, running_store

POLL = 0.2


@dataclass(frozen=True)
class Asked:
    """One job: rows of the tech-support corpus, some of them held out."""

    rows: int
    epochs: int = 1
    batch: int = 8
    held_out: int = 0


JOBS = (
    Asked(160),
    Asked(320),
    Asked(160, epochs=2),
    Asked(320, held_out=64),
    Asked(640, held_out=128),
    Asked(320, batch=16),
    Asked(320, batch=2, held_out=64),
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    table = Table("rows", "held out", "epochs", "batch", "measured jobs", "estimate, s", "truth, s", "estimate / truth")
    with running_store() as (host, port):
        url = f"http://{host}:{port}"
        body: Json = {"email": "bench@example.com", "password": secrets.token_hex(8), "handle": "bench"}
        client = StoreClient(url, StoreClient(url).post("/v1/accounts", body)["api_key"]["secret"])
        for asked in JOBS:
            estimate, truth = trained(client, asked)
            said = estimate["seconds"]
            table.add_row(
                *(str(each) for each in (asked.rows, asked.held_out, asked.epochs, asked.batch)),
                str(estimate["measured_jobs"]),
                f"{said:.1f}",
                f"{truth:.1f}",
                f"{said / truth:.2f}",
            )
    console = Console(width=110)
    console.print(table)
    console.print(json.dumps(describe()))


def trained(client: StoreClient, asked: Asked) -> tuple[Json, float]:
    """The estimate, and seconds from the creation to the end."""
    lines = tech_support(asked.rows + asked.held_out).training.splitlines(keepends=True)
    request: Json = {
        "model": BASE,
        "training_file": upload(client, b"".join(lines[: asked.rows])),
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": asked.epochs, "batch_size": asked.batch}},
        },
    }
    if asked.held_out:
        request["validation_file"] = upload(client, b"".join(lines[asked.rows :]))
    estimate = client.post("/v1/fine_tuning/estimate", request)
    begun = time.monotonic()
    job = client.post("/v1/fine_tuning/jobs", request)
    while job["status"] not in ("succeeded", "failed", "cancelled"):
        time.sleep(POLL)
        job = client.get(f"/v1/fine_tuning/jobs/{job['id']}")
    if job["status"] != "succeeded":
        raise SystemExit(f"a job ended as {job['status']}: {job['error']}")
    return estimate, time.monotonic() - begun


def upload(client: StoreClient, rows: bytes) -> str:
    """Until its validation has counted the tokens."""
    file = client.openai.files.create(file=("rows.jsonl", rows), purpose="fine-tune").id
    client.openai.files.wait_for_processing(file, poll_interval=POLL)
    return file


if __name__ == "__main__":
    main()
