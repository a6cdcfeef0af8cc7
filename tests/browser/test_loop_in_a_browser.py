"""The loop as people walk it: in a browser, on a phone's screen, against a running store."""

import re
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.cli.demo_data import tech_support
from tests.browser.conftest import PATIENCE_MS
from tests.running_store import Person, Store, upload_adapter

# The browser first: without one there is no need to start a store.
pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("chromium")]
Window = Callable[[], Page]
PASSWORD = "correct horse"


def sign_in(page: Page, store: Store, person: Person) -> None:
    page.goto(f"{store.url}/sign-in")
    page.get_by_label("E-mail").fill(f"{person.handle}@example.com")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{store.url}/")


def publish(page: Page, store: Store, model: str, title: str) -> None:
    page.goto(f"{store.url}/models")
    page.get_by_role("link", name="Publish").click()
    assert page.get_by_label("Model").input_value() == model
    page.get_by_label("Title").fill(title)
    page.get_by_label("Name in its address").fill("by-browser")
    page.get_by_label("One line about it").fill("Answers in a browser.")
    page.get_by_label("Example questions").fill("Who are you?\nWhat can you do?")
    page.get_by_label("Access, once").fill("0.50")
    page.get_by_role("button", name="Publish").click()
    # The page of a listing under check reloads by itself.
    page.locator(".title .is-published").wait_for()


def test_a_seller_publishes_and_a_buyer_finds_buys_and_talks(
    window: Window, store: Store, person: Callable[[str], Person]
) -> None:
    seller, title = person("window"), f"Browser bot {secrets.token_hex(3)}"
    model = upload_adapter(seller, seed=11)
    shop = window()
    sign_in(shop, store, seller)
    publish(shop, store, model, title)

    page, handle = window(), f"walker-{secrets.token_hex(3)}"
    page.goto(store.url)
    page.get_by_label("Search the store").fill(title)
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name=title).click()
    page.locator(".locked").get_by_role("link", name="Sign up").click()
    page.get_by_label("E-mail").fill(f"{handle}@example.com")
    page.get_by_label("Handle").fill(handle)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign up").click()
    page.get_by_role("link", name="Go on").click()
    page.get_by_role("button", name="Buy access for $0.50").click()
    expect(page.get_by_text("You have access.")).to_be_visible()

    paid = talk(page)
    page.get_by_role("link", name="Wallet").click()
    bought = page.get_by_role("row", name=re.compile("Access bought"))
    expect(bought).to_contain_text("−$0.50")
    expect(page.get_by_role("row", name=re.compile(r"Call .*by-browser")).first).to_contain_text(f"−{paid}")
    shop.goto(f"{store.url}/wallet")
    expect(shop.get_by_text("Access sold: $0.45")).to_be_visible()


def talk(page: Page) -> str:
    """Click a question, see the answer grow; returns what the chat says it cost. Then stop another answer midway."""
    page.get_by_role("button", name="What can you do?").click()
    # Playwright's wait_for_function would need the eval that the pages' policy forbids.
    page.locator(".said.assistant.busy", has_text=re.compile(r"\S")).wait_for()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("[data-status]")).to_have_text("Stopped.")
    assert page.locator(".said.assistant").inner_text()
    page.get_by_label("Your question").fill("Say more.")
    page.get_by_label("Your question").press("Enter")
    status = page.locator("[data-status]")
    expect(status).to_contain_text("tokens in", timeout=PATIENCE_MS)
    assert page.locator(".said").count() == 4
    return status.inner_text().rpartition(": ")[2]


def test_a_jobs_curve_moves_while_it_trains(
    window: Window, store: Store, person: Callable[[str], Person], tmp_path: Path
) -> None:
    data = tmp_path / "support.jsonl"
    data.write_bytes(tech_support(64).training)
    page = window()
    sign_in(page, store, person("watcher"))
    page.goto(f"{store.url}/jobs/new")
    page.get_by_label("Examples, a JSONL file").set_input_files(data)
    page.get_by_label("Suffix").fill("watched")
    page.get_by_role("button", name="Upload and train").click()
    expect(page.get_by_role("heading", name="watched")).to_be_visible()
    page.evaluate("window.sameDocument = true")
    curve = page.locator("polyline.train")
    first = curve.get_attribute("points", timeout=2 * PATIENCE_MS) or ""
    expect(curve).not_to_have_attribute("points", first, timeout=PATIENCE_MS)
    assert len((curve.get_attribute("points") or "").split()) > len(first.split())
    assert page.evaluate("window.sameDocument")
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator(".progress .is-cancelled")).to_be_visible(timeout=PATIENCE_MS)
