"""What guards a form: where it comes from, whose it is, and that it works once."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.routing import APIRoute

from app.accounts.reset_password import reset_token
from app.billing.purchase import list_purchases
from app.billing.wallet import read_wallet
from app.catalog.prices import set_price
from app.catalog.schemas import PricesIn
from app.catalog.tables import Listing
from app.database import transaction
from app.settings import get_settings
from app.web.forms import local_path
from app.web.pages import ROUTERS
from tests.conftest import Signed
from tests.factories import new_listing, new_member
from tests.web.conftest import Browser, Member

PRICE = 2_000_000
SignUp = Callable[..., Signed]


@pytest.fixture
def shop(services: object) -> tuple[str, Listing]:
    """The address of a listing that costs PRICE."""
    with transaction() as tx:
        seller: Signed = new_member(tx)
        listing = new_listing(tx, seller.account_id, access=PRICE)
    return f"/{seller.handle}/{listing.name}", listing


def form_addresses() -> list[str]:
    """Of every form that the pages have."""
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    paths = [route.path for route in routes if "POST" in (route.methods or ())]
    return [re.sub(r"\{\w+(:handle)?\}", "some-name", path) for path in paths]


def balance(account_id: str) -> int:
    with transaction() as tx:
        return read_wallet(tx, account_id).available_micros


def test_no_form_works_without_its_token_or_from_another_site(member: Member) -> None:
    browser = member("target")
    paths = form_addresses()
    assert len(paths) >= 11
    for path in paths:
        for site in ("cross-site", "same-site"):
            foreign = browser.http.post(path, data={"name": "x"}, headers={"sec-fetch-site": site})
            assert (foreign.status_code, "another site" in foreign.text) == (403, True), path
        if path not in ("/sign-in", "/sign-up", "/reset-password"):
            assert browser.http.post(path, data={"csrf": "0" * 64, "name": "x"}).status_code == 403, path
            assert browser.http.post(path, data={"name": "x"}).status_code == 403, path


def test_without_fetch_metadata_the_origin_decides(visitor: Browser) -> None:
    del visitor.http.headers["sec-fetch-site"]
    fields = {"email": "nobody@example.com", "password": "wrong wrong"}
    for origin, status in (("http://testserver", 401), ("https://evil.example", 403), ("null", 403)):
        assert visitor.http.post("/sign-in", data=fields, headers={"origin": origin}).status_code == status
    assert visitor.http.post("/sign-in", data=fields).status_code == 403


def test_a_double_click_buys_once(member: Member, shop: tuple[str, Listing]) -> None:
    address, _ = shop
    buyer = member("buyer")
    csrf, key = buyer.hidden(address, "csrf"), buyer.hidden(address, "idempotency_key")
    fields = {"csrf": csrf, "idempotency_key": key, "expected_price_micros": str(PRICE)}
    before = balance(buyer.account_id)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: buyer.http.post(f"{address}/buy", data=fields), range(4)))
    assert {(answer.status_code, answer.headers["location"]) for answer in answers} == {(303, f"{address}?done=bought")}
    assert before - balance(buyer.account_id) == PRICE
    with transaction() as tx:
        assert len(list_purchases(tx, buyer.account_id, None, 10)) == 1
    assert "You have access" in buyer.get(f"{address}?done=bought").text


def test_a_stale_price_is_shown_before_it_is_paid(member: Member, shop: tuple[str, Listing]) -> None:
    address, listing = shop
    buyer = member("buyer")
    with transaction() as tx:
        dearer = PricesIn(
            access_micros=PRICE + 10_000,
            input_micros_per_million_tokens=50_000,
            output_micros_per_million_tokens=150_000,
        )
        set_price(tx, tx.get_one(Listing, listing.id), dearer)
    answer = buyer.send(address, f"{address}/buy", expected_price_micros=str(PRICE))
    assert answer.status_code == 409
    assert "Buy access for $2.01" in answer.text
    assert balance(buyer.account_id) == 5_000_000


def test_a_refused_purchase_undoes_all_of_itself(member: Member) -> None:
    buyer = member("poor")
    with transaction() as tx:
        seller = new_member(tx)
        name = new_listing(tx, seller.account_id, access=6_000_000).name
    address = f"/{seller.handle}/{name}"
    assert buyer.send(address, f"{address}/buy").status_code == 402
    assert "You have access" not in buyer.get(address).text
    assert balance(buyer.account_id) == 5_000_000


@pytest.mark.parametrize(
    "away",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "javascript:x",
        "/a\nb",
        "",
        "a",
    ],
)
def test_next_never_leads_away(visitor: Browser, signed_up: SignUp, away: str) -> None:
    assert local_path(away) == "/"
    user = signed_up("next")
    fields = {"email": user.email, "password": "correct horse battery", "next": away}
    assert visitor.http.post("/sign-in", data=fields).headers["location"] == "/"


def test_signing_in_leads_back_and_signing_out_ends_the_session(visitor: Browser, signed_up: SignUp) -> None:
    user = signed_up("back")
    fields = {"email": user.email, "password": "correct horse battery", "next": "/jobs?after=x"}
    answer = visitor.http.post("/sign-in", data=fields)
    assert answer.headers["location"] == "/jobs?after=x"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    token = visitor.http.cookies["gptstore_session"]
    assert visitor.send("/wallet", "/sign-out").headers["location"] == "/?done=signed-out"
    visitor.http.cookies.set("gptstore_session", token)
    assert visitor.get("/wallet").status_code == 303


def test_a_refused_form_keeps_what_was_typed_but_never_the_password(visitor: Browser) -> None:
    fields = {"email": "ada@example.com", "handle": "Not A Handle", "password": "a secret passphrase"}
    answer = visitor.http.post("/sign-up", data=fields)
    assert answer.status_code == 400
    assert 'value="ada@example.com"' in answer.text
    assert 'id="handle-wrong"' in answer.text
    assert "passphrase" not in answer.text


def test_signing_up_signs_in_and_shows_a_key_that_works(visitor: Browser) -> None:
    fields = {
        "email": "new-by-page@example.com",
        "handle": "new-by-page",
        "password": "long enough",
        "next": "/jobs/new",
    }
    answer = visitor.http.post("/sign-up", data=fields)
    key = re.search(r"gpts_[\w-]+", answer.text)
    assert key
    assert 'href="/jobs/new"' in answer.text
    assert visitor.get("/wallet").status_code == 200
    visitor.http.cookies.clear()
    me = visitor.get("/v1/me", headers={"authorization": f"Bearer {key[0]}"})
    assert me.json()["account"]["handle"] == "new-by-page"


def test_a_reset_link_sets_a_password_once(visitor: Browser, signed_up: SignUp) -> None:
    user = signed_up("forgetful")
    with transaction() as tx:
        token = reset_token(tx, user.email, get_settings().secret_key, operator="cli")
    page = f"/reset-password?token={token}"
    assert 'id="password-wrong"' in visitor.send(page, "/reset-password", password="short").text
    assert visitor.send(page, "/reset-password", password="brand new words").headers["location"].startswith("/sign-in")
    assert "not valid any more" in visitor.send(page, "/reset-password", password="brand new words").text
    assert visitor.http.post("/sign-in", data={"email": user.email, "password": "brand new words"}).status_code == 303


def test_fields_that_no_form_has_do_no_harm(visitor: Browser, member: Member) -> None:
    nul = visitor.http.post("/sign-in", data={"email": "a\0b@example.com", "password": "x" * 9})
    assert nul.status_code == 400
    many = {f"f{number}": "x" for number in range(100)}
    assert visitor.http.post("/sign-in", data=many).status_code == 400
    assert visitor.http.post("/sign-in", data={"email": "x" * 300_000}).status_code == 400
    browser = member("uploader")
    files = {"file": ("a.txt", b"x")}
    assert browser.http.post("/wallet/top-up", files=files, data={"csrf": "x"}).status_code == 400
    assert browser.http.post("/wallet/top-up", json={"csrf": "x"}).status_code == 403
