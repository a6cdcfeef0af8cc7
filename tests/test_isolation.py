"""Tenant isolation as a matrix: every route × every field that names a thing × everybody who may not see it.

A route that is not listed in DOORS fails, so nobody adds one without saying who may pass. `secret` is in everything
that the owner has; no answer to anybody else may hold it.
"""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from app.accounts.api_keys import create_key, find_key, revoke_key
from app.accounts.rules import SCOPES
from app.catalog.publish import change_listing
from app.catalog.schemas import ListingChange
from app.files.validation import finish_validation
from app.ids import new_id
from tests.conftest import Base, Services, Signed
from tests.factories import listing_body, new_listing, new_member, new_variant

OPEN, ANY_KEY = "open", "any key"


@dataclass(frozen=True)
class Door:
    """Who passes: OPEN, ANY_KEY, or a scope. `ids`: the fields that name somebody's thing; `{name}` in `body` is
    replaced by the stranger's own or a public one of that name. `cursors`: query fields that take an id.
    """

    scope: str
    ids: tuple[str, ...] = ()
    body: dict[str, Any] | None = None
    cursors: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


CHAT = {"model": "{base}", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
JOB = {"model": "{base}", "training_file": "{training_file}"}
LISTING = ("handle", "name")
PRICES = listing_body("")["prices"]

DOORS: dict[tuple[str, str], Door] = {
    ("GET", "/healthz"): Door(OPEN),
    ("GET", "/readyz"): Door(OPEN),
    ("GET", "/metrics"): Door(OPEN),
    ("POST", "/v1/accounts"): Door(OPEN, body={}),
    ("POST", "/v1/sessions"): Door(OPEN, body={}),
    ("DELETE", "/v1/sessions"): Door(ANY_KEY),
    ("GET", "/v1/me"): Door(ANY_KEY),
    ("GET", "/v1/api_keys"): Door("keys"),
    ("POST", "/v1/api_keys"): Door("keys", body={"name": "x", "scopes": ["files"]}),
    ("DELETE", "/v1/api_keys/{key_id}"): Door("keys", ids=("key_id",)),
    ("POST", "/v1/files"): Door("files", files=("file",), body={"purpose": "user_data"}),
    ("GET", "/v1/files"): Door("files", cursors=("after:file",)),
    ("GET", "/v1/files/{file_id}"): Door("files", ids=("file_id",)),
    ("DELETE", "/v1/files/{file_id}"): Door("files", ids=("file_id",)),
    ("GET", "/v1/files/{file_id}/content"): Door("files", ids=("file_id",)),
    ("GET", "/v1/files/{file_id}/report"): Door("files", ids=("file_id",)),
    ("POST", "/v1/fine_tuning/jobs"): Door("fine_tuning", ids=("model", "training_file", "validation_file"), body=JOB),
    ("POST", "/v1/fine_tuning/estimate"): Door("fine_tuning", ids=("model", "training_file"), body=JOB),
    ("GET", "/v1/fine_tuning/jobs"): Door("fine_tuning", cursors=("after:ftjob",)),
    ("GET", "/v1/fine_tuning/jobs/{job_id}"): Door("fine_tuning", ids=("job_id",)),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"): Door("fine_tuning", ids=("job_id",)),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/events"): Door("fine_tuning", ids=("job_id",)),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/checkpoints"): Door("fine_tuning", ids=("job_id",)),
    ("POST", "/v1/artifacts"): Door(
        "models", files=("adapter_model.safetensors", "adapter_config.json"), body={"base_model": "{base}"}
    ),
    ("GET", "/v1/listings"): Door(OPEN),
    ("POST", "/v1/listings"): Door("listings", ids=("model",), body=listing_body("{model}")),
    ("GET", "/v1/categories"): Door(OPEN),
    ("GET", "/v1/listings/{handle}/{name}"): Door(OPEN, ids=LISTING),
    ("PATCH", "/v1/listings/{handle}/{name}"): Door("listings", ids=LISTING, body={"title": "x"}),
    ("DELETE", "/v1/listings/{handle}/{name}"): Door("listings", ids=LISTING),
    ("GET", "/v1/listings/{handle}/{name}/versions"): Door(OPEN, ids=LISTING),
    ("POST", "/v1/listings/{handle}/{name}/versions"): Door(
        "listings", ids=(*LISTING, "model"), body={"model": "{model}"}
    ),
    ("GET", "/v1/listings/{handle}/{name}/prices"): Door(OPEN, ids=LISTING),
    ("POST", "/v1/listings/{handle}/{name}/prices"): Door("listings", ids=LISTING, body=PRICES),
    ("GET", "/v1/listings/{handle}/{name}/reviews"): Door(OPEN, ids=LISTING),
    ("POST", "/v1/listings/{handle}/{name}/reviews"): Door("reviews", ids=LISTING, body={"rating": 5}),
    ("POST", "/v1/purchases"): Door("purchases", ids=("listing",), body={"listing": "{listing}"}),
    ("GET", "/v1/purchases"): Door("purchases", cursors=("after:pur",)),
    ("GET", "/v1/purchases/{purchase_id}"): Door("purchases", ids=("purchase_id",)),
    ("GET", "/v1/wallet"): Door("wallet"),
    ("GET", "/v1/wallet/entries"): Door("wallet", cursors=("after:entry",)),
    ("POST", "/v1/wallet/top_ups"): Door("wallet", body={"amount_micros": 1}),
    ("GET", "/v1/usage"): Door("wallet"),
    ("GET", "/v1/earnings"): Door("wallet"),
    ("GET", "/v1/models"): Door("models"),
    ("GET", "/v1/models/{model}"): Door("models", ids=("model", "listing")),
    ("DELETE", "/v1/models/{model}"): Door("models", ids=("model",)),
    ("POST", "/v1/chat/completions"): Door("inference", ids=("model", "listing"), body=CHAT),
    ("POST", "/v1/completions"): Door(
        "inference", ids=("model",), body={"model": "{base}", "prompt": "Hi", "max_tokens": 1}
    ),
}
NAMES = {door: " ".join(door) for door in DOORS}
NAMING = [(door, name) for door, what in DOORS.items() for name in what.ids]


@dataclass(frozen=True)
class World:
    """An owner with one of everything, and a stranger with their own. `theirs`, `own`, `random`: values by field."""

    client: TestClient
    secret: str
    owner: Signed
    stranger: Signed
    theirs: dict[str, str]
    own: dict[str, str]
    random: dict[str, str]

    def send(self, door: tuple[str, str], key: str | None, changed: dict[str, str] | None = None) -> Response:
        """As a caller with `key`; fields of `changed` name another thing than the caller's own."""
        method, path = door
        names = self.own | (changed or {})
        headers = {"authorization": f"Bearer {key}"} if key else {}
        filled = path.format_map(names)
        what = DOORS[door]
        body = None if what.body is None else fill(what.body, names)
        for name in changed or {}:
            if body is not None and name in what.ids and f"{{{name}}}" not in path:
                body["model" if name == "listing" and "model" in body else name] = names[name]
        if what.files:
            files = {name: (name, b"x") for name in what.files}
            return self.client.request(method, filled, headers=headers, data=body, files=files)
        return self.client.request(method, filled, headers=headers, json=body)


def fill(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: fill(each, names) for name, each in value.items()}
    return value.format_map(names) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def world(client: TestClient, services: Services, base: Base) -> Iterator[World]:
    from app.database import transaction

    secret = f"sesame{secrets.token_hex(6)}"
    with transaction() as tx:
        owner, stranger, seller = (new_member(tx) for _ in range(3))
        owned = new_listing(tx, owner.account_id, title=secret, system_prompt=secret)
        change_listing(tx, owned, ListingChange(visibility="private"))
        variants = {each: new_variant(tx, each.account_id, base.id) for each in (owner, stranger)}
        spare = new_listing(tx, stranger.account_id)
        sold = new_listing(tx, seller.account_id, access=1)
        sold_name = f"{seller.handle}/{sold.name}"
        named_key, _ = create_key(tx, owner.account_id, secret, ["files"])
    theirs = {
        "key_id": named_key.id,
        "file_id": upload(client, owner, secret),
        "model": variants[owner].model,
        "handle": owner.handle,
        "name": owned.name,
        "listing": f"{owner.handle}/{owned.name}",
        "purchase_id": bought(client, owner, sold_name),
    }
    theirs["training_file"] = theirs["validation_file"] = theirs["file_id"]
    theirs["job_id"] = trained(client, owner, base.id, theirs["file_id"], secret)
    training = upload(client, stranger, "plain")
    own = {
        "base": base.id,
        "training_file": training,
        "file_id": training,
        "model": variants[stranger].model,
        "handle": stranger.handle,
        "name": spare.name,
        "listing": sold_name,
        "key_id": new_id("key"),
        "job_id": new_id("ftjob"),
        "purchase_id": new_id("pur"),
    }
    random = {
        "key_id": new_id("key"),
        "file_id": new_id("file"),
        "training_file": new_id("file"),
        "validation_file": new_id("file"),
        "job_id": new_id("ftjob"),
        "purchase_id": new_id("pur"),
        "model": theirs["model"][:-8] + secrets.token_hex(4),
        "handle": f"acct-{secrets.token_hex(6)}",
        "name": f"bot-{secrets.token_hex(4)}",
        "listing": f"{owner.handle}/bot-{secrets.token_hex(4)}",
    }
    yield World(client, secret, owner, stranger, theirs, own, random)


def upload(client: TestClient, owner: Signed, word: str) -> str:
    row = {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": word}]}
    files = {"file": (f"{word}.jsonl", json.dumps(row).encode())}
    answer = client.post("/v1/files", headers=owner.headers, data={"purpose": "fine-tune"}, files=files)
    return str(answer.json()["id"])


def bought(client: TestClient, buyer: Signed, listing: str) -> str:
    return str(client.post("/v1/purchases", headers=buyer.headers, json={"listing": listing}).json()["id"])


def trained(client: TestClient, owner: Signed, base_id: str, file_id: str, suffix: str) -> str:
    from app.database import transaction

    with transaction() as tx:
        finish_validation(tx, file_id, {"rows": 1, "tokens": 8, "problems": []}, None)
    body = {"model": base_id, "training_file": file_id, "suffix": suffix, "metadata": {"what": suffix}}
    return str(client.post("/v1/fine_tuning/jobs", headers=owner.headers, json=body).json()["id"])


def key_with(account: Signed, scopes: list[str], *, revoked: bool = False) -> str:
    from app.database import transaction

    with transaction() as tx:
        key, secret = create_key(tx, account.account_id, "test", scopes)
        if revoked:
            assert find_key(tx, secret)
            revoke_key(tx, account.account_id, key.id)
    return secret


def error(answer: Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_every_route_is_in_the_matrix_with_all_its_ids(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    routes = {(method.upper(), path): about for path, methods in paths.items() for method, about in methods.items()}
    assert set(routes) == set(DOORS)
    for door, about in routes.items():
        named = {each["name"] for each in about.get("parameters", []) if each["in"] == "path"}
        assert named <= set(DOORS[door].ids), door


@pytest.mark.parametrize("door", [each for each in DOORS if DOORS[each].scope != OPEN], ids=NAMES.__getitem__)
def test_nobody_passes_without_a_good_key(world: World, door: tuple[str, str]) -> None:
    revoked = key_with(world.owner, sorted(SCOPES), revoked=True)
    for key in (None, secrets.token_hex(20), revoked, f"gpts_{secrets.token_hex(6)}_{'x' * 43}"):
        answer = world.send(door, key)
        assert error(answer) == (401, "invalid_api_key"), (key, answer.text)
    answer = world.client.request(door[0], door[1].format_map(world.own), params={"api_key": world.owner.key})
    assert answer.status_code in (401, 400), answer.text


@pytest.mark.parametrize("door", [each for each in DOORS if DOORS[each].scope in SCOPES], ids=NAMES.__getitem__)
def test_every_other_scope_together_is_not_enough(world: World, door: tuple[str, str]) -> None:
    key = key_with(world.stranger, sorted(SCOPES - {DOORS[door].scope}))
    assert error(world.send(door, key)) == (403, "insufficient_scope")


@pytest.mark.parametrize(("door", "name"), NAMING, ids=lambda each: each if isinstance(each, str) else " ".join(each))
def test_a_foreign_thing_and_an_unknown_one_read_the_same(world: World, door: tuple[str, str], name: str) -> None:
    foreign, unknown = (dict(names) for names in (world.theirs, world.random))
    both = LISTING if name in LISTING and "{handle}" in door[1] else (name,)
    # A foreign listing needs its owner's handle; an unknown one may be unknown by either half.
    unknown["handle"] = unknown["handle"] if name == "handle" else world.theirs["handle"]
    unknown["name"] = world.theirs["name"] if name == "handle" else unknown["name"]
    changes = [{each: names[each] for each in both} for names in (foreign, unknown)]
    if door[1] == "/v1/models/{model}":
        changes = [{"model": names[name]} for names in (foreign, unknown)]
    answers = [world.send(door, world.stranger.key, change) for change in changes]
    assert [answer.status_code for answer in answers] == [404, 404], [answer.text for answer in answers]
    first, second = (blank(answer.text, change) for answer, change in zip(answers, changes, strict=True))
    assert first == second
    assert world.secret not in answers[0].text


def blank(text: str, names: dict[str, str]) -> str:
    for value in names.values():
        text = text.replace(value, "…")
    return text


@pytest.mark.parametrize("door", [each for each in DOORS if each[0] == "GET"], ids=NAMES.__getitem__)
def test_what_a_stranger_reads_never_holds_the_owners_secret(world: World, door: tuple[str, str]) -> None:
    for key in (world.stranger.key, None):
        assert world.secret not in world.send(door, key).text


@pytest.mark.parametrize(
    "door", [each for each in DOORS if each[0] == "GET" and DOORS[each].ids], ids=NAMES.__getitem__
)
def test_the_owner_reads_all_of_it(world: World, door: tuple[str, str]) -> None:
    """Else the refusals above would prove nothing."""
    assert world.send(door, world.owner.key, world.theirs).status_code == 200


@pytest.mark.parametrize("door", [each for each in DOORS if DOORS[each].cursors], ids=NAMES.__getitem__)
def test_a_foreign_cursor_shows_only_ones_own(world: World, door: tuple[str, str]) -> None:
    for cursor in DOORS[door].cursors:
        name, _, prefix = cursor.partition(":")
        newest = "9" * 15 if prefix == "entry" else f"{prefix}-{'z' * 26}"
        answer = world.client.get(door[1], params={name: newest}, headers=world.stranger.headers)
        assert answer.status_code == 200, answer.text
        assert world.secret not in answer.text
        assert not [
            value for value in world.theirs.values() if value in answer.text and value not in world.own.values()
        ]
