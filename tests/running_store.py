"""One real store for all tests that need a whole one: `gptstore up` with SmolLM2, as a newcomer has it."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from openai import OpenAI
from safetensors.numpy import save

Tensors = dict[str, np.ndarray]
BASE = "smollm2-135m-instruct"
START_SECONDS = 300.0
# Shorter patience than an operator's, so that what follows a kill -9 is seen sooner.
# One address makes all the mistakes of these tests, so guessing is not slowed.
IMPATIENT = {
    "GPTSTORE_FINE_TUNING__LEASE": "4",
    "GPTSTORE_GENERATION__SILENCE": "4",
    "GPTSTORE_API__FAILED_LOGINS_PER_MINUTE": "1000000",
}


@dataclass
class Store:
    """A running `gptstore up`. `lines` is what it printed so far."""

    url: str
    data: Path
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    reader: threading.Thread = field(default_factory=threading.Thread)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def follow(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()

    def close(self) -> None:
        """After its end: all it printed is read."""
        self.reader.join(10)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def wait_for(self, found: Callable[[str], bool], after: int = 0, seconds: float = START_SECONDS) -> str:
        """The first line from number `after` on that fits; awaited, never polled."""

        def seen() -> str | None:
            return next((line for line in self.lines[after:] if found(line)), None)

        with self._changed:
            self._changed.wait_for(lambda: seen() is not None, seconds)
            line = seen()
        assert line is not None, "\n".join(self.lines[-30:])
        return line

    def part(self, module: str) -> psutil.Process:
        """The process of a part, by what it runs."""
        return next(child for child in self.children() if module in " ".join(child.cmdline()))

    def lives(self, module: str) -> bool:
        """A part that was just killed has not yet come back."""
        return any(module in " ".join(child.cmdline()) for child in self.children())

    def children(self) -> list[psutil.Process]:
        children: list[psutil.Process] = psutil.Process(self.process.pid).children()
        return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]

    def processes(self) -> list[psutil.Process]:
        """All that it started, and what those started."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def end(self, how: signal.Signals) -> int:
        """Its exit code, once it has ended and left no process behind."""
        parts = self.processes()
        self.process.send_signal(how)
        code = self.process.wait(60)
        assert not psutil.wait_procs(parts, timeout=10)[1], f"{how.name} left an orphan"
        return code

    def verify_ledger(self) -> str:
        """As an operator does, in another terminal."""
        command = [sys.executable, "-m", "app.cli.main", "ledger", "--data", str(self.data), "verify"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GPTSTORE_")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        return done.stdout + done.stderr


@dataclass(frozen=True)
class Person:
    """An account of that store: the official SDK, and plain HTTP for the store's own part."""

    handle: str
    key: str
    openai: OpenAI
    http: httpx.Client

    def wallet(self) -> dict[str, int]:
        answer: dict[str, int] = self.http.get("/v1/wallet").json()
        return answer


def started(data: Path, port: int, environment: dict[str, str], user: str | None = None) -> Store:
    """`gptstore up` on its way; wait for its `ready http…` line."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GPTSTORE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli.main", "up", "--port", str(port), "--data", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean | IMPATIENT | environment,
        start_new_session=True,
        user=user,
        extra_groups=[] if user else None,
    )
    running = Store(f"http://127.0.0.1:{port}", data, process)
    running.reader = threading.Thread(target=running.follow, daemon=True)
    running.reader.start()
    return running


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    data = Path(tempfile.mkdtemp(prefix="gptstore-e2e-"))
    data.chmod(0o755)
    running = started(data, free_port(), {})
    try:
        running.wait_for(lambda line: line.startswith("ready http"))
        yield running
    finally:
        try:
            code = running.end(signal.SIGINT)
        finally:
            running.close()
            shutil.rmtree(data, ignore_errors=True)
    assert code == 0, "\n".join(running.lines[-30:])


@pytest.fixture(scope="session")
def person(store: Store) -> Iterator[Callable[[str], Person]]:
    """`person("seller")` → a new account with its clients."""
    opened: list[Person] = []

    def new(role: str) -> Person:
        handle = f"{role}-{secrets.token_hex(4)}"
        body = {"email": f"{handle}@example.com", "password": "correct horse", "handle": handle}
        answer = httpx.post(f"{store.url}/v1/accounts", json=body)
        assert answer.status_code == 201, answer.text
        key = answer.json()["api_key"]["secret"]
        http = httpx.Client(base_url=store.url, headers={"authorization": f"Bearer {key}"}, timeout=60)
        opened.append(Person(handle, key, OpenAI(base_url=f"{store.url}/v1", api_key=key, max_retries=0), http))
        return opened[-1]

    yield new
    for each in opened:
        each.http.close()
        each.openai.close()


def upload_adapter(owner: Person, seed: int) -> str:
    """Returns the name to call it by."""
    tensors, config = random_adapter(seed)
    files = {
        "adapter_model.safetensors": ("adapter_model.safetensors", save(tensors)),
        "adapter_config.json": ("adapter_config.json", json.dumps(config)),
    }
    answer = owner.http.post("/v1/artifacts", data={"base_model": BASE, "suffix": f"v{seed}"}, files=files)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["model"])


def random_adapter(seed: int, rank: int = 4, layers: int = 30, width: int = 576) -> tuple[Tensors, dict[str, object]]:
    """Random factors on SmolLM2's query projections, strong enough to change the answer; and their PEFT config."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for layer in range(layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = random.standard_normal((rank, width), dtype=np.float32) / width**0.5
        tensors[f"{name}.lora_B.weight"] = random.standard_normal((width, rank), dtype=np.float32) * 0.3
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    return tensors, config


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
