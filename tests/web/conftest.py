"""Browsers without a screen: cookies, hidden fields and the headers that real ones send."""

import re
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import Response
from starlette.testclient import TestClient

from app.accounts.sessions import start_session
from app.database import transaction
from app.dependencies import SESSION_COOKIE
from app.onboarding.join import join

AS_BROWSER = {"accept": "text/html,application/xhtml+xml", "sec-fetch-site": "same-origin"}


class Browser:
    """Follows no redirect by itself. `handle` and `account_id` are empty for a visitor."""

    def __init__(self, app: FastAPI, handle: str = "", account_id: str = "", token: str = "") -> None:
        self.handle, self.account_id = handle, account_id
        self.http = TestClient(app, raise_server_exceptions=False, follow_redirects=False, headers=AS_BROWSER)
        if token:
            self.http.cookies.set(SESSION_COOKIE, token)

    def get(self, path: str, **options: Any) -> Response:
        return self.http.get(path, **options)

    def hidden(self, path: str, name: str) -> str:
        """What a form on that page would send by itself."""
        match = re.search(rf'name="{name}" value="([^"]*)"', self.get(path).text)
        assert match, f"{path} has no hidden {name}"
        return match[1]

    def send(self, page: str, action: str, files: Any = None, **fields: str) -> Response:
        """Fill in the form on `page` and send it."""
        shown = self.get(page).text
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', shown))
        return self.http.post(action, data=hidden | fields, files=files)


@pytest.fixture(scope="session")
def store_app(client: TestClient) -> FastAPI:
    assert isinstance(client.app, FastAPI)
    return client.app


@pytest.fixture
def visitor(store_app: FastAPI) -> Browser:
    return Browser(store_app)


@pytest.fixture
def member(store_app: FastAPI) -> Callable[[str], Browser]:
    """`member("seller")` → a new account, signed in."""

    def new(prefix: str = "member") -> Browser:
        handle = f"{prefix}-{secrets.token_hex(4)}"
        with transaction() as tx:
            joined = join(tx, f"{handle}@example.com", "correct horse battery", handle)
            token, _ = start_session(tx, joined.user.id, joined.account.id)
        return Browser(store_app, handle, joined.account.id, token)

    return new


Member = Callable[[str], Browser]
