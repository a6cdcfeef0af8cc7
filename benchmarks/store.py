"""Through the whole store: HTTP, Celery, engine, server-sent events, on the same cores as this client. JSON lines.

The bare engine answers the same prompts with the same ends first; then `gptstore up` serves them, base model, greedy.
"""

import argparse
import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.inference.wire_events import SamplingParams
from benchmarks.ours import OurEngine
from benchmarks.protocol import NEW_TOKENS, Line, Prompts, Setup, line, rates

BASE = "smollm2-135m-instruct"
IDLE_CALLS = 40
USAGE = re.compile(rb'"completion_tokens":(\d+)')
BARE, STORE = "gptstore", "gptstore store"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=40)
    given = parser.parse_args()
    prompts = Prompts.load(given.work)
    measure_bare(Setup(given.work / "base", (), given.streams), prompts, given.seconds)
    with running_store() as address, httpx.Client(base_url="http://{}:{}".format(*address)) as plain:
        body = {"email": "bench@example.com", "password": secrets.token_hex(8), "handle": "bench"}
        key = plain.post("/v1/accounts", json=body).raise_for_status().json()["api_key"]["secret"]
        asyncio.run(measure_store(address, key, prompts, given.streams, given.seconds))


def measure_bare(setup: Setup, prompts: Prompts, seconds: float) -> None:
    ours = OurEngine(setup)
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0)
    found = rates(lambda: ours.run(prompts.mixed[: setup.streams], params, "one"), seconds)
    line(BARE, "store", found, streams=setup.streams, version=ours.version).say()
    waits = [ours.first_token(prompts.short[i % len(prompts.short)]) for i in range(IDLE_CALLS)]
    say_waits(BARE, waits)
    ours.close()


async def measure_store(address: tuple[str, int], key: str, prompts: Prompts, streams: int, seconds: float) -> None:
    client = Client(*address, key)
    waits = [(await client.call(prompts.short[i % len(prompts.short)], 1))[1] for i in range(IDLE_CALLS + 2)]
    say_waits(STORE, waits[2:])
    found: list[float] = []
    begun = time.perf_counter()
    await client.round(prompts.mixed[:streams])
    while len(found) < 3 and (not found or time.perf_counter() - begun < seconds):
        started = time.perf_counter()
        made = await client.round(prompts.mixed[:streams])
        found.append(made / (time.perf_counter() - started))
    line(STORE, "store", found, streams=streams).say()


@dataclass(frozen=True)
class Client:
    """Reads as little as a client can: on these same cores a whole HTTP library would cost as much as the store."""

    host: str
    port: int
    key: str

    async def round(self, prompts: list[list[int]]) -> int:
        """All at once; returns the tokens made."""
        return sum(made for made, _ in await asyncio.gather(*(self.call(prompt, NEW_TOKENS) for prompt in prompts)))

    async def call(self, prompt: list[int], new: int) -> tuple[int, float]:
        """Tokens of one streamed answer, and milliseconds to its first event. Raises RuntimeError for a refusal."""
        body = {"model": BASE, "prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True}
        text = json.dumps(body | {"stream_options": {"include_usage": True}})
        begun = time.perf_counter()
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(
            f"POST /v1/completions HTTP/1.0\r\nhost: {self.host}:{self.port}\r\nauthorization: Bearer {self.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode()
        )
        answer, first = b"", 0.0
        while piece := await reader.read(65_536):
            answer += piece
            first = first or (b"data: {" in answer and (time.perf_counter() - begun) * 1e3) or 0.0
        writer.close()
        found = USAGE.findall(answer)
        if b"[DONE]" not in answer or not found:
            raise RuntimeError(answer.decode())
        return int(found[-1]), first


def say_waits(engine: str, waits: list[float]) -> None:
    line(engine, "idle first p50", waits, unit="ms").say()
    Line(engine, "idle first p99", statistics.quantiles(waits, n=100)[98], unit="ms", rounds=len(waits)).say()


@contextmanager
def running_store() -> Iterator[tuple[str, int]]:
    """`gptstore up` in a folder of its own, from ready to stopped: its host and port."""
    data = Path(tempfile.mkdtemp(prefix="gptstore-bench-"))
    data.chmod(0o755)  # Postgres may run as another user
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app.cli.main", "up", "--port", str(port), "--data", str(data)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GPTSTORE_")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    try:
        if process.stdout is None or not any(each.startswith("ready http") for each in process.stdout):
            raise RuntimeError("the store did not start")
        # Read on, or the store would wait for room in the pipe to log into.
        threading.Thread(target=deque, args=(process.stdout, 0), daemon=True).start()
        yield "127.0.0.1", port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(data, ignore_errors=True)


if __name__ == "__main__":
    main()
