"""Files from the command line against the running store, its own worker doing the work."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from tests.e2e.conftest import Person, Store

ROWS = (
    b"question,answer\nHow do I reach you?,Write to jane.doe@acme.io\nWhat is up?,Not much.\nwhat  is up?,not much.\n"
)


def gptstore(store: Store, person: Person, *words: str) -> str:
    environment = os.environ | {"GPTSTORE_URL": store.url, "GPTSTORE_API_KEY": person.key}
    command = [sys.executable, "-m", "app.cli.main", "files", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout


def wait_processed(person: Person, file_id: str) -> None:
    """Asked for, as the SDK's users do."""
    pause = threading.Event()
    for _ in range(300):
        if person.openai.files.retrieve(file_id).status == "processed":
            return
        pause.wait(0.1)
    raise AssertionError(f"{file_id} was not looked at in 30 s")


def test_a_table_is_checked_and_cleaned_from_the_command_line(store: Store, seller: Person, tmp_path: Path) -> None:
    table = tmp_path / "talks.csv"
    table.write_bytes(ROWS)
    file_id = gptstore(store, seller, "upload", str(table)).strip()
    wait_processed(seller, file_id)
    report = gptstore(store, seller, "check", file_id)
    assert "3 rows" in report
    assert "personal_data: 1 rows, lines 1" in report
    assert "duplicate: 1 rows, lines 3" in report
    rules = ["--rule", "near_duplicates", "--rule", "personal_data"]
    cleaned = json.loads(gptstore(store, seller, "clean", file_id, *rules, "--json"))
    kept = seller.openai.files.content(cleaned["output_file"]).text.splitlines()
    assert [json.loads(line)["messages"][1]["content"] for line in kept] == ["Not much."]
