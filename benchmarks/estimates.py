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
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from app.cli.demo_data import tech_support
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
    with running_store() as (host, port), httpx.Client(base_url=f"http://{host}:{port}", timeout=60) as client:
        body = {"email": "bench@example.com", "password": secrets.token_hex(8), "handle": "bench"}
        key = client.post("/v1/accounts", json=body).raise_for_status().json()["api_key"]["secret"]
        client.headers["authorization"] = f"Bearer {key}"
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


def trained(client: httpx.Client, asked: Asked) -> tuple[dict[str, Any], float]:
    """The estimate, and seconds from the creation to the end."""
    lines = tech_support(asked.rows + asked.held_out).training.splitlines(keepends=True)
    request: dict[str, Any] = {
        "model": BASE,
        "training_file": upload(client, b"".join(lines[: asked.rows])),
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": asked.epochs, "batch_size": asked.batch}},
        },
    }
    if asked.held_out:
        request["validation_file"] = upload(client, b"".join(lines[asked.rows :]))
    estimate = client.post("/v1/fine_tuning/estimate", json=request).raise_for_status().json()
    begun = time.monotonic()
    job = client.post("/v1/fine_tuning/jobs", json=request).raise_for_status().json()
    while job["status"] not in ("succeeded", "failed", "cancelled"):
        time.sleep(POLL)
        job = client.get(f"/v1/fine_tuning/jobs/{job['id']}").raise_for_status().json()
    if job["status"] != "succeeded":
        raise SystemExit(f"a job ended as {job['status']}: {job['error']}")
    return estimate, time.monotonic() - begun


def upload(client: httpx.Client, rows: bytes) -> str:
    """Until its validation has counted the tokens."""
    files = {"file": ("rows.jsonl", rows)}
    file = client.post("/v1/files", data={"purpose": "fine-tune"}, files=files).raise_for_status().json()
    while file["status"] != "processed":
        time.sleep(POLL)
        file = client.get(f"/v1/files/{file['id']}").raise_for_status().json()
    return str(file["id"])


if __name__ == "__main__":
    main()
