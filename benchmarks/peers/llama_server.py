"""llama.cpp's HTTP server: `option` is `SERVER|MODEL.gguf|LORA_FOLDER` (0.gguf … in it); see roster.py.

It does not put requests with different adapters into one batch (its README says so).
"""

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.protocol import Setup

START_SECONDS = 60
CONTEXT = 512


class LlamaServer:
    label = "llama.cpp"

    def __init__(self, setup: Setup) -> None:
        server, model, loras = setup.option.split("|")
        self.count = len(setup.adapters)
        self.pool = ThreadPoolExecutor(setup.streams)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        command = [server, "-m", model, "--host", "127.0.0.1", "--port", str(self.port), "--no-webui", "--no-warmup"]
        command += ["-np", str(setup.streams), "-c", str(CONTEXT * setup.streams)]
        if self.count:
            files = ",".join(str(Path(loras) / f"{number}.gguf") for number in range(self.count))
            command += ["--lora", files, "--lora-init-without-apply"]
        self.version = first_line([server, "--version"])
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait()

    def _wait(self) -> None:
        for _ in range(START_SECONDS * 4):
            if self.process.poll() is not None:
                break
            try:
                if self._call("GET", "/health", None)[0] == http.client.OK:
                    return
            except OSError:
                pass
            time.sleep(0.25)
        self.close()
        raise RuntimeError("llama-server did not start")

    def _call(self, method: str, path: str, body: dict[str, object] | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def _complete(self, prompt: list[int], new: int, adapter: int | None) -> int:
        body: dict[str, object] = {"prompt": prompt, "n_predict": new, "ignore_eos": True, "temperature": 0}
        body |= {"top_k": 1, "samplers": ["top_k"], "cache_prompt": False}
        if self.count:
            body["lora"] = [{"id": adapter, "scale": 1.0}]
        status, answer = self._call("POST", "/completion", body)
        if status != http.client.OK:
            raise RuntimeError(answer[:300])
        return int(json.loads(answer)["tokens_predicted"])

    def generate(self, prompts: Sequence[list[int]], new: int) -> int:
        made = self.pool.map(
            lambda at: self._complete(prompts[at], new, at % self.count if self.count else None), range(len(prompts))
        )
        return sum(made)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[0]
