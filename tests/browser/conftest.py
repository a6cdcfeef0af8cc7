"""The system's Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 60_000


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Skips where there is none; under CI=true that is a failure.

    It ends with this folder's tests: Playwright's event loop runs in the main thread until then.
    """
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        told = f"no browser found ({', '.join(NAMES)}); on Debian: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(told)
        pytest.skip(told)
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root; the pages are ours.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def window(chromium: Browser) -> Iterator[Callable[[], Page]]:
    """`window()` → a new person's browser. Anything that a page's policy blocks or a script throws fails the test."""
    wrong: list[str] = []
    contexts = []

    def new() -> Page:
        contexts.append(chromium.new_context(viewport={"width": 390, "height": 844}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        return page

    yield new
    for context in contexts:
        context.close()
    assert wrong == []
