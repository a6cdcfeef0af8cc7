"""The store's own endpoints over HTTP, for the command line. OpenAI's endpoints go through the `openai` package."""

import json
import os
import time
from pathlib import Path
from typing import Any

import httpx
import openai

Json = dict[str, Any]
ACCEPTED = 202
DEFAULT_URL = "http://127.0.0.1:8000"


class Refused(Exception):
    """The store's refusal, in its own words."""


class StoreClient:
    """One account's view of one store."""

    def __init__(self, url: str, key: str = "") -> None:
        self.url = url.rstrip("/")
        self.key = key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=60)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or "none", max_retries=2)

    def get(self, path: str, **params: str | int | None) -> Json:
        given = {name: value for name, value in params.items() if value is not None}
        return self._answer(self._http.get(path, params=given))

    def post(self, path: str, body: Json, idempotency_key: str | None = None) -> Json:
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        return self._answer(self._http.post(path, json=body, headers=headers))

    def download(self, path: str, target: Path, **params: str) -> None:
        """Write the answer to a file; asks again while the store prepares it (202)."""
        while True:
            with self._http.stream("GET", path, params=params) as response:
                if response.status_code == ACCEPTED:
                    time.sleep(float(response.headers.get("retry-after", "3")))
                    continue
                if not response.is_success:
                    response.read()
                    self._answer(response)
                with target.open("wb") as file:
                    for piece in response.iter_bytes():
                        file.write(piece)
                return

    def _answer(self, response: httpx.Response) -> Json:
        if response.is_success:
            answer: Json = response.json()
            return answer
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"the store answered {response.status_code}"
        raise Refused(message)


def config_path() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "gptstore" / "config.json"


def save_login(url: str, key: str) -> Path:
    """Readable by its owner only."""
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps({"url": url, "key": key}))
    return path


def logged_in() -> StoreClient:
    """From GPTSTORE_URL and GPTSTORE_API_KEY, else from the last `gptstore login`."""
    path = config_path()
    saved = json.loads(path.read_text()) if path.exists() else {}
    url = os.environ.get("GPTSTORE_URL") or saved.get("url") or DEFAULT_URL
    key = os.environ.get("GPTSTORE_API_KEY") or saved.get("key")
    if not key:
        raise Refused("log in first: gptstore login --key gpts_… (or set GPTSTORE_API_KEY)")
    return StoreClient(url, key)
