"""Tenant isolation as a matrix: every route × every field that names a thing × everybody who may not see it.

A route that is not listed in DOORS fails, so nobody adds one without saying who may pass. `secret` is in everything
that the owner has; no answer to anybody else may hold it.
"""

import secrets

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from app.accounts.api_keys import create_key, find_key, revoke_key
from app.accounts.rules import SCOPES
from tests.conftest import Base, Signed
from tests.doors import DOORS, LISTING, OPEN, World, make_world

NAMES = {door: " ".join(door) for door in DOORS}
READ_BY_ID = [each for each in DOORS if each[0] == "GET" and DOORS[each].ids]
NAMING = [(door, name) for door, what in DOORS.items() for name in what.ids]


@pytest.fixture(scope="module")
def world(client: TestClient, base: Base) -> World:
    return make_world(client, base.id)


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
