"""Through the whole store: HTTP, Celery, engine, server-sent events, on the same cores as this client. JSON lines.

The bare engine answers the same prompts with the same ends first; then `gptstore up` serves them, base model, greedy.
"""

import argparse
import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from app.inference.wire_events import SamplingParams
from benchmarks.ours import OurEngine
from benchmarks.protocol import NEW_TOKENS, Line, Prompts, Setup, line, rates

BASE = "smollm2-135m-instruct"
IDLE_CALLS = 40
BARE, STORE = "gptstore", "gptstore store"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=40)
    given = parser.parse_args()
    prompts = Prompts.load(given.work)
    measure_bare(Setup(given.work / "base", (), given.streams), prompts, given.seconds)
    with running_store() as url, httpx.Client(base_url=url) as plain:
        body = {"email": "bench@example.com", "password": secrets.token_hex(8), "handle": "bench"}
        key = plain.post("/v1/accounts", json=body).raise_for_status().json()["api_key"]["secret"]
        asyncio.run(measure_store(url, key, prompts, given.streams, given.seconds))


def measure_bare(setup: Setup, prompts: Prompts, seconds: float) -> None:
    ours = OurEngine(setup)
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0)
    found = rates(lambda: ours.run(prompts.mixed[: setup.streams], params, "one"), seconds)
    line(BARE, "store", found, streams=setup.streams, version=ours.version).say()
    waits = [ours.first_token(prompts.short[i % len(prompts.short)]) for i in range(IDLE_CALLS)]
    say_waits(BARE, waits)
    ours.close()


async def measure_store(url: str, key: str, prompts: Prompts, streams: int, seconds: float) -> None:
    limits = httpx.Limits(max_connections=streams)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=600) as client:
        waits = [(await call(client, prompts.short[i % len(prompts.short)], 1))[1] for i in range(IDLE_CALLS + 2)]
        say_waits(STORE, waits[2:])
        found: list[float] = []
        begun = time.perf_counter()
        await round_of(client, prompts.mixed[:streams])
        while len(found) < 3 and (not found or time.perf_counter() - begun < seconds):
            started = time.perf_counter()
            made = await round_of(client, prompts.mixed[:streams])
            found.append(made / (time.perf_counter() - started))
        line(STORE, "store", found, streams=streams).say()


async def round_of(client: httpx.AsyncClient, prompts: list[list[int]]) -> int:
    return sum(made for made, _ in await asyncio.gather(*(call(client, prompt, NEW_TOKENS) for prompt in prompts)))


async def call(client: httpx.AsyncClient, prompt: list[int], new: int) -> tuple[int, float]:
    """Tokens of one streamed answer, and milliseconds to the first event with a choice."""
    body = {"model": BASE, "prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    begun, first, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != httpx.codes.OK:
            raise RuntimeError((await answer.aread()).decode())
        async for text in answer.aiter_lines():
            if not text.startswith("data: {"):
                continue
            event = json.loads(text.removeprefix("data: "))
            if "error" in event:
                raise RuntimeError(text)
            first = first or (time.perf_counter() - begun) * 1e3
            tokens = event["usage"]["completion_tokens"] if event.get("usage") else tokens
    return tokens, first


def say_waits(engine: str, waits: list[float]) -> None:
    line(engine, "idle first p50", waits, unit="ms").say()
    Line(engine, "idle first p99", statistics.quantiles(waits, n=100)[98], unit="ms", rounds=len(waits)).say()


@contextmanager
def running_store() -> Iterator[str]:
    """`gptstore up` in a folder of its own, from ready to stopped."""
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
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        shutil.rmtree(data, ignore_errors=True)


if __name__ == "__main__":
    main()
