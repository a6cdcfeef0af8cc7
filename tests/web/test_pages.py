"""Every page, by everybody: what they see, and what guards it."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy.orm import Session
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from app.accounts.rules import RESERVED_HANDLES
from app.database import transaction
from app.files.tables import File
from app.fine_tuning.events import Event, add_events
from app.fine_tuning.tables import FineTuningJob
from app.main import ROUTERS as API
from app.web.pages import ROUTERS as PAGES
from tests.factories import new_account, new_base, new_listing, new_member
from tests.web.conftest import Browser, Member

PUBLIC = ["/", "/sign-in", "/sign-up", "/reset-password?token=x"]
OWN = ["/models", "/files", "/jobs", "/jobs/new", "/listings/new", "/wallet", "/keys"]
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


class Suspects(HTMLParser):
    """What of a page could run or load anything but the store's own files."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        source = given.get("src") or given.get("href", "")
        foreign = tag in ("script", "img", "link") and not source.startswith("/static/")
        inline = tag in ("style", "iframe", "object", "base") or any(name[:2] == "on" for name in given)
        unsafe_link = tag == "a" and source.lower().startswith(("javascript:", "data:"))
        if foreign or inline or unsafe_link or "style" in given:
            self.found.append(f"{tag} {given}")


def safe(page: str) -> bool:
    """Whatever the policy header says."""
    return Suspects(page).found == []


@pytest.mark.parametrize("path", PUBLIC)
def test_anybody_sees_the_public_pages(visitor: Browser, path: str) -> None:
    page = visitor.get(path)
    assert page.status_code == 200
    assert page.text.count("<h1") == 1


@pytest.mark.parametrize("path", OWN)
def test_own_pages_ask_a_visitor_to_sign_in_and_lead_back(visitor: Browser, member: Member, path: str) -> None:
    asked = visitor.get(path)
    assert (asked.status_code, asked.headers["location"]) == (303, f"/sign-in?next={path}")
    assert member("owner").get(path).text.count("<h1") == 1


@pytest.mark.parametrize("path", [*PUBLIC, *OWN, "/nowhere/at-all", "/?sort=backwards"])
def test_every_page_carries_its_guards(member: Member, path: str) -> None:
    page = member("guarded").get(path)
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "same-origin"
    assert safe(page.text)


def test_every_first_word_of_a_page_is_reserved(store_app: FastAPI) -> None:
    """Else a seller could take the handle and their listings would be unreachable."""
    routes = [*store_app.routes, *(route for router in (*API, *PAGES) for route in router.routes)]
    words = {route.path.split("/")[1] for route in routes if isinstance(route, Route | Mount)}
    handles = {word for word in words if re.fullmatch(r"[a-z0-9-]{2,40}", word)}
    assert {"models", "wallet", "static", "v1"} <= handles
    assert handles <= RESERVED_HANDLES


def test_a_browser_gets_a_page_and_a_client_the_envelope(visitor: Browser) -> None:
    page = visitor.get("/nobody/knows-it")
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "does not exist" in page.text
    for path, headers in (("/v1/nowhere", {}), ("/nobody/knows-it", {"accept": "application/json"})):
        assert visitor.get(path, headers=headers).json()["error"]["code"] == "not_found"
    assert visitor.http.post("/v1/nowhere/at-all", json={}).status_code == 404


def test_what_sellers_and_buyers_write_is_only_text(visitor: Browser, member: Member) -> None:
    card = f"# Big\n{HOSTILE}\n[a](javascript:alert(1)) [b](https://example.com) ![c](https://example.com/c.png)"
    with transaction() as tx:
        seller = new_member(tx)
        texts: dict[str, Any] = {"title": HOSTILE, "summary": HOSTILE, "description": card, "starters": [HOSTILE]}
        name = new_listing(tx, seller.account_id, access=0, examples=[{"input": HOSTILE}], **texts).name
    for browser in (visitor, member("reader")):
        shown = browser.get(f"/{seller.handle}/{name}")
        page = shown.text
        assert (shown.status_code, safe(page)) == (200, True)
        assert "&lt;script&gt;alert(1)" in page
        assert '<a href="https://example.com" rel="nofollow noopener noreferrer">b</a>' in page
        assert page.count("<h1") == 1
    assert safe(visitor.get(f"/?handle={seller.handle}&q={HOSTILE}").text)


def test_a_listing_without_a_published_version_is_its_owners_secret(visitor: Browser, member: Member) -> None:
    owner = member("owner")
    with transaction() as tx:
        name = new_listing(tx, owner.account_id, published=False).name
    assert "checking" in owner.get(f"/{owner.handle}/{name}").text
    for browser in (visitor, member("stranger")):
        assert browser.get(f"/{owner.handle}/{name}").status_code == 404


def test_a_job_is_its_owners_and_its_curve_grows(member: Member) -> None:
    owner = member("trainer")
    with transaction() as tx:
        job = running_job(tx, owner.account_id)
    assert "appears with the first step" in owner.get(f"/jobs/{job}/progress").text
    lengths = []
    for step in (1, 2, 3):
        with transaction() as tx:
            figures = {"step": step, "total_steps": 10, "train_loss": 4 / step, "valid_loss": 5 / step}
            add_events(tx, job, [Event(f"Step {step}/10", type="metrics", data=figures)])
        drawn = re.findall(r'<polyline class="\w+" points="([^"]+)"', owner.get(f"/jobs/{job}/progress").text)
        lengths.append([len(line.split()) for line in drawn])
    assert lengths == [[1, 1], [2, 2], [3, 3]]
    assert "<svg" in owner.get(f"/jobs/{job}").text
    for path in (f"/jobs/{job}", f"/jobs/{job}/progress"):
        assert member("stranger").get(path).status_code == 404


def running_job(tx: Session, account_id: str) -> str:
    base = new_base(tx)
    file = File(account_id=account_id, filename="a.jsonl", purpose="fine-tune", bytes=1, digest="0" * 64)
    tx.add(file)
    tx.flush()
    job = FineTuningJob(
        account_id=account_id,
        model=base.id,
        base_id=base.id,
        training_file_id=file.id,
        method={"type": "supervised"},
        hyperparameters={},
        seed=1,
        status="running",
    )
    tx.add(job)
    tx.flush()
    return job.id


def test_the_front_page_finds_counts_and_turns_pages(visitor: Browser) -> None:
    with transaction() as tx:
        seller = new_member(tx)
        for number in range(25):
            new_listing(tx, seller.account_id, title=f"Zebra counter {number}", category="research", access=number % 2)
    first = visitor.get(f"/?handle={seller.handle}&sort=newest").text
    assert "25 GPTs" in first
    assert first.count('<li class="card">') == 24
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following
    rest = visitor.get(following[1].replace("&amp;", "&")).text
    assert rest.count('<li class="card">') == 1
    assert "Zebra counter 0<" in rest
    assert "12 GPTs" in visitor.get(f"/?handle={seller.handle}&price=paid").text
    assert "Nothing fits" in visitor.get(f"/?handle={seller.handle}&category=coding").text
    assert visitor.get("/?after=forged").status_code == 400


def test_static_files_may_be_kept_under_their_content_address_only(visitor: Browser) -> None:
    address = re.search(r'href="(/static/[^"]+\.css)"', visitor.get("/").text)
    assert address
    assert "immutable" in visitor.get(address[1]).headers["cache-control"]
    assert visitor.get("/static/0000/store.css").headers["cache-control"] == "no-cache"
    assert visitor.get("/static/0000/../rendering.py").status_code == 404
    assert visitor.get("/static/0000/%2e%2e/rendering.py").status_code == 404


def test_an_old_cookie_is_a_visitor(store_app: FastAPI) -> None:
    stale = Browser(store_app, token="long gone")
    assert "Sign in" in stale.get("/").text
    assert stale.get("/wallet").status_code == 303


def test_a_listing_shows_how_to_call_it(visitor: Browser) -> None:
    with transaction() as tx:
        seller = new_account(tx)
        listing = new_listing(tx, seller.id, license="mit")
    address = f"{seller.handle}/{listing.name}"
    page = visitor.get(f"/{address}").text
    for part in ("/v1/chat/completions", f"{address}@1", "OpenAI(base_url=", "mit", listing.base_id):
        assert part in page
    assert f"/sign-in?next=/{address}" in page


def test_the_api_reference_needs_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/docs")
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert "POST /v1/chat/completions" in answer.text
    assert "//" not in answer.text.replace("http://www.w3.org", "").replace("http://testserver", "")
