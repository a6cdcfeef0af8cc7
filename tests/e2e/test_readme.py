"""What the README tells people to type works as written, on a running store."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from app.cli.demo_data import tech_support
from tests.e2e.conftest import BASE, Person, Store
from tests.e2e.test_calls import ask

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def on_this_store(snippet: str, store: Store, key: str) -> str:
    return snippet.replace("http://127.0.0.1:8000", store.url).replace("gpts_…", key)


def run(command: list[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GPTSTORE_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment |= {"PATH": path, "XDG_CONFIG_HOME": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_python_snippets_run(store: Store, seller: Person, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(tech_support(8).training)
    calling, training = (on_this_store(each, store, seller.key) for each in snippets("python"))
    assert "Paris" in run([sys.executable, "-c", calling], tmp_path)
    assert "Created fine-tuning job" in run([sys.executable, "-W", "ignore", "-c", training], tmp_path)


def test_the_shell_snippets_run(store: Store, person: Callable[[str], Person], tmp_path: Path) -> None:
    seller = person("reader")
    (tmp_path / "train.jsonl").write_bytes(tech_support(8).training)
    make, sign_up, commands = (on_this_store(each, store, seller.key) for each in snippets("bash"))
    assert make == "make run\n"
    assert "gpts_" in run(["bash", "-ec", sign_up], tmp_path)
    said = run(["bash", "-ec", commands], tmp_path)
    assert f"logged in as {seller.handle}" in said
    assert f"ft:smollm2-135m-instruct:{seller.handle}:support:" in said
    assert "welcome_credit" in said


def test_the_store_tells_what_prometheus_wants(store: Store, buyer: Person) -> None:
    ask(buyer, BASE, max_tokens=2)
    text = httpx.get(f"{store.url}/metrics").text
    for series in ("gptstore_tokens_relayed_total", 'gptstore_generations_total{outcome="finished"}'):
        assert re.search(rf"^{re.escape(series)} [1-9]", text, re.MULTILINE), text
    assert re.search(
        r'^gptstore_worker_produced_tokens\{base="smollm2.*,kind="generation".*\} [0-9]', text, re.MULTILINE
    )
    assert 'gptstore_http_requests_total{method="POST",route="/v1/chat/completions",status="200"}' in text
    ready = httpx.get(f"{store.url}/readyz").json()
    assert {worker["kind"] for worker in ready["workers"]} == {"generation", "bases", "fine-tuning"}


def test_the_id_of_a_request_is_in_its_tasks_log(store: Store, seller: Person) -> None:
    files = {"file": ("train.jsonl", tech_support(2).training)}
    answer = seller.http.post("/v1/files", data={"purpose": "fine-tune"}, files=files)
    wanted = answer.headers["x-request-id"]
    store.wait_for(lambda line: "file_validated" in line and wanted in line)


def test_the_clients_commands_answer_in_json(store: Store, seller: Person, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(tech_support(2).training)

    def told(*command: str) -> Any:
        return json.loads(run([sys.executable, "-m", "app.cli.main", *command, "--json"], tmp_path))

    assert told("login", "--url", store.url, "--key", seller.key)["account"]["handle"] == seller.handle
    file_id = told("files", "upload", "train.jsonl")["id"]
    assert file_id in [each["id"] for each in told("files", "list")["data"]]
    assert told("files", "report", file_id)["file_id"] == file_id
    before = told("wallet")["wallet"]["available_micros"]
    assert told("top-up", "5")["status"] == "succeeded"
    assert told("wallet")["wallet"]["available_micros"] == before + 5
    assert told("search", "nothing like it")["total"] == 0
