"""The main loop by pages alone: upload and train, publish, earn; and the wallet and keys beside it."""

import json
import re
from collections.abc import Mapping

import pytest
from httpx2 import Response

from app.billing.purchase import buy
from app.catalog.check import finish_check
from app.catalog.find import find_listing, latest_version
from app.catalog.tables import Listing
from app.database import transaction
from app.fine_tuning.find import list_jobs
from app.settings import get_settings
from tests.factories import new_account, new_base, new_listing, new_member, new_variant
from tests.web.conftest import Browser, Member

ROW = json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
DATA = {"training_file": ("train.jsonl", f"{ROW}\n" * 20), "validation_file": ("held.jsonl", f"{ROW}\n")}


@pytest.fixture
def seller(member: Member) -> Browser:
    return member("seller")


@pytest.fixture
def model(seller: Browser) -> str:
    with transaction() as tx:
        return new_variant(tx, seller.account_id).model


def test_an_upload_starts_one_job_however_often_it_is_sent(seller: Browser) -> None:
    with transaction() as tx:
        base = new_base(tx).id
    fields = {name: seller.hidden("/jobs/new", name) for name in ("csrf", "idempotency_key")}
    fields |= {"model": base, "suffix": "by-page", "n_epochs": "2"}
    answers = [seller.http.post("/jobs", data=fields, files=DATA) for _ in range(2)]
    with transaction() as tx:
        (job,) = list_jobs(tx, seller.account_id, None, 10, {})
        assert (job.suffix, job.hyperparameters["n_epochs"], job.validation_file_id is not None) == ("by-page", 2, True)
    assert [answer.headers["location"] for answer in answers] == [f"/jobs/{job.id}"] * 2
    assert "by-page" in seller.get("/jobs").text
    cancelled = seller.send(f"/jobs/{job.id}", f"/jobs/{job.id}/cancel")
    assert cancelled.headers["location"] == f"/jobs/{job.id}?done=cancelled"
    assert "cancelled" in seller.get(f"/jobs/{job.id}").text


@pytest.mark.parametrize(
    ("files", "fields", "field"),
    [
        ({}, {}, "training_file"),
        ({"training_file": ("a.jsonl", '{"messages": []}')}, {}, "training_file"),
        ({"training_file": ("a.jsonl", f"{ROW}\nnot json")}, {}, "training_file"),
        (DATA | {"validation_file": ("../b.jsonl", "x")}, {}, "validation_file"),
        (DATA, {"n_epochs": "1000"}, "n_epochs"),
        (DATA, {"n_epochs": "many"}, "n_epochs"),
        (DATA, {"suffix": "-no-"}, "suffix"),
        (DATA, {"model": "unheard-of"}, "model"),
    ],
)
def test_a_refused_upload_says_why_beside_the_field(
    seller: Browser, files: dict[str, tuple[str, str]], fields: dict[str, str], field: str
) -> None:
    with transaction() as tx:
        base = new_base(tx).id
    answer = seller.send("/jobs/new", "/jobs", files=files, **{"model": base, "suffix": "kept"} | fields)
    assert answer.status_code in (400, 404)
    assert f'id="{field}-wrong"' in answer.text
    assert "kept" in answer.text or "suffix" in fields
    with transaction() as tx:
        assert list_jobs(tx, seller.account_id, None, 10, {}) == []


def offer(seller: Browser, model: str, changes: Mapping[str, str] = {}) -> Response:
    fields = {
        "model": model,
        "name": "by-page",
        "title": "A title worth keeping",
        "summary": "It answers.",
        "category": "coding",
        "tags": "one, two",
        "license": "mit",
        "system_prompt": "Be brief.",
        "starters": "First?\r\n\r\nSecond?",
        "access_micros": "0.5",
        "input_micros_per_million_tokens": "0.10",
        "output_micros_per_million_tokens": "0.4",
    }
    return seller.send("/listings/new", "/listings", **fields | dict(changes))


def test_a_published_model_is_checked_sold_and_earns(seller: Browser, model: str, visitor: Browser) -> None:
    assert model in seller.get("/models").text
    answer = offer(seller, model)
    address = f"/{seller.handle}/by-page"
    assert answer.headers["location"] == f"{address}?done=published"
    with transaction() as tx:
        listing = find_listing(tx, seller.handle, "by-page", seller.account_id)
        version = latest_version(tx, listing.id)
        assert (version.system_prompt, version.starters) == ("Be brief.", ["First?", "Second?"])
        assert (listing.tags, listing.category) == (["one", "two"], "coding")
        finish_check(tx, version.id, [])
    assert "$0.50" in visitor.get(address).text
    assert "$0.10 in, $0.40 out" in visitor.get(address).text
    with transaction() as tx:
        buy(tx, new_account(tx, 1_000_000).id, tx.get_one(Listing, listing.id), 500_000)
    assert "$0.45" in seller.get("/wallet").text
    assert "A title worth keeping" in seller.get("/models").text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Not A Name"),
        ("title", ""),
        ("category", "weapons"),
        ("access_micros", "-1"),
        ("access_micros", "0.0000001"),
        ("access_micros", "NaN"),
        ("access_micros", "1e400"),
        ("input_micros_per_million_tokens", "0.01"),
        ("model", "ft:somebody:elses:model:12345678"),
    ],
)
def test_a_refused_offer_says_why_beside_the_field(seller: Browser, model: str, field: str, value: str) -> None:
    answer = offer(seller, model, {field: value})
    assert answer.status_code in (400, 404)
    text = answer.text
    assert f'id="{field}-wrong"' in text
    assert field == "title" or "A title worth keeping" in text


def test_refusals_about_money_are_told_in_dollars(seller: Browser, model: str) -> None:
    cheap = offer(seller, model, {"input_micros_per_million_tokens": "0.01"}).text
    assert "at least the base&#39;s, here $0.05 per million tokens" in cheap
    much = seller.send("/wallet", "/wallet/top-up", amount_micros="1000001").text
    assert "at most $1,000,000.00" in much
    for page in (cheap, much):
        assert not re.search(r"\d micros|micros_per_million_tokens (may|must)", page)


def test_a_name_is_taken_once(seller: Browser, model: str) -> None:
    offer(seller, model)
    again = offer(seller, model)
    assert (again.status_code, 'id="name-wrong"' in again.text) == (409, True)


@pytest.mark.parametrize("amount", ["", "abc", "0", "-5", "0.0000001", "1e30", "Infinity"])
def test_a_bad_amount_moves_nothing(seller: Browser, amount: str) -> None:
    answer = seller.send("/wallet", "/wallet/top-up", amount_micros=amount)
    assert (answer.status_code, 'id="amount_micros-wrong"' in answer.text) == (400, True)
    assert "$5.00" in answer.text


def test_play_money_comes_to_the_micro_and_once(seller: Browser) -> None:
    fields = {name: seller.hidden("/wallet", name) for name in ("csrf", "idempotency_key")}
    for _ in range(2):
        answer = seller.http.post("/wallet/top-up", data=fields | {"amount_micros": "1.234567"})
        assert answer.headers["location"] == "/wallet?done=topped-up"
    wallet = seller.get("/wallet").text
    assert wallet.count("$6.234567") >= 2
    assert wallet.count("+$1.234567") == 1
    assert seller.http.post("/wallet/top-up", data=fields | {"amount_micros": "2"}).status_code == 422


def test_a_store_without_the_sandbox_offers_no_top_up(seller: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {name: seller.hidden("/wallet", name) for name in ("csrf", "idempotency_key")}
    monkeypatch.setenv("GPTSTORE_BILLING__SANDBOX_GATEWAY", "false")
    get_settings.cache_clear()
    try:
        assert "Top up" not in seller.get("/wallet").text
        assert seller.http.post("/wallet/top-up", data=fields | {"amount_micros": "1"}).status_code == 403
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()


def test_a_key_is_shown_once_and_revoked_by_its_owner_only(seller: Browser, visitor: Browser, member: Member) -> None:
    made = seller.send("/keys", "/keys", name="laptop", grant="calls")
    key = re.search(r"gpts_[a-z0-9]{12}_[\w-]+", made.text)
    assert key
    headers = {"authorization": f"Bearer {key[0]}"}
    assert visitor.get("/v1/me", headers=headers).json()["scopes"] == ["inference", "models"]
    listed = seller.get("/keys").text
    assert key[0] not in listed
    action = re.search(r'action="(/keys/[\w-]+/revoke)"', listed)
    assert action
    assert member("stranger").send("/keys", action[1]).status_code == 404
    assert seller.send("/keys", action[1]).headers["location"] == "/keys?done=revoked"
    assert visitor.get("/v1/me", headers=headers).status_code == 401


def test_only_who_bought_or_called_may_review(member: Member) -> None:
    buyer, stranger = member("buyer"), member("stranger")
    with transaction() as tx:
        owner = new_member(tx)
        listing = new_listing(tx, owner.account_id, access=10)
        buy(tx, buyer.account_id, listing, 10)
    address = f"/{owner.handle}/{listing.name}"
    assert 'name="rating"' not in stranger.get(address).text
    assert stranger.send(address, f"{address}/review", rating="1").status_code == 403
    for rating, words in (("4", "Good"), ("5", "Better\r\n<b>now</b>")):
        answer = buyer.send(address, f"{address}/review", rating=rating, body=words)
        assert answer.headers["location"] == f"{address}?done=reviewed#reviews"
    page = stranger.get(address).text
    assert "Better\n&lt;b&gt;now" in page
    assert "5.0" in page
    refused = buyer.send(address, f"{address}/review", rating="9", body="Kept")
    assert (refused.status_code, "Kept</textarea>" in refused.text) == (400, True)
