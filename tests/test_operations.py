"""What operators see and do: metrics, the audit table, reset links, the schema, the command line's answers."""

import json
import re
import secrets
from collections.abc import Callable, Iterator

import pytest
import typer.main
from alembic import command
from alembic.config import Config
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient
from typer.testing import CliRunner

from app.accounts.reset_password import reset_password
from app.accounts.sessions import find_session, open_session
from app.accounts.tables import AuditEntry, User
from app.cli.main import app
from app.errors import InvalidCredentials, InvalidSignature
from app.settings import get_settings
from tests.conftest import ROOT, Services, Signed

SignUp = Callable[..., Signed]


def test_the_models_and_the_migrations_agree(services: Services) -> None:
    """As `alembic check`."""
    command.check(Config(ROOT / "alembic.ini"))


def test_requests_are_counted_by_route_never_by_id(client: TestClient) -> None:
    def count() -> float:
        series = 'gptstore_http_requests_total{method="GET",route="/v1/files/{file_id}",status="401"}'
        found = re.search(re.escape(series) + r" ([0-9.]+)", client.get("/metrics").text)
        return float(found[1]) if found else 0.0

    before, unknown = count(), f"file-{secrets.token_hex(8)}"
    assert client.get(f"/v1/files/{unknown}").status_code == 401
    assert count() == before + 1
    client.get(f"/{unknown}")
    client.request("BREW", "/v1/me")
    text = client.get("/metrics").text
    assert unknown not in text
    assert "BREW" not in text


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def audited(tx: Session, action: str, subject: str) -> bool:
    query = select(AuditEntry.id).where(AuditEntry.action == action, AuditEntry.subject == subject)
    return tx.scalar(query) is not None


def test_what_an_operator_does_is_in_the_audit_table(signed_up: SignUp, tx: Session) -> None:
    user = signed_up()
    answer = json.loads(run("accounts", "promote", user.email, "--json"))
    assert answer["is_operator"] is True
    assert audited(tx, "accounts.promote", answer["user"])
    run("accounts", "reset-password", user.email)
    assert audited(tx, "accounts.reset_password", answer["user"])
    base_id = f"base-{secrets.token_hex(4)}"
    run("models", "import", "/nowhere", "--name", base_id, "--no-wait")
    assert audited(tx, "models.import", base_id)


def test_an_operators_mistake_is_one_line_and_exit_code_1(services: Services) -> None:
    result = CliRunner().invoke(app, ["accounts", "promote", "nobody@example.com"])
    assert (result.exit_code, result.stderr) == (1, "error: No user has that e-mail address.\n")


def test_the_books_are_verified_for_programs_too(services: Services) -> None:
    assert json.loads(run("ledger", "verify", "--json")) == {"sound": True, "problems": []}


def test_a_reset_link_sets_one_new_password_and_signs_everybody_out(signed_up: SignUp, tx: Session) -> None:
    user = signed_up()
    token = json.loads(run("accounts", "reset-password", user.email, "--json"))["url"].partition("token=")[2]
    browser, _ = open_session(tx, user.email, "correct horse battery")
    secret_key = get_settings().secret_key
    with pytest.raises(InvalidSignature):
        reset_password(tx, token[:-2] + "xx", "a newer password", secret_key)
    with pytest.raises(InvalidSignature):
        reset_password(tx, token, "a newer password", secret_key + "0")
    reset_password(tx, token, "a newer password", secret_key)
    assert find_session(tx, browser) is None
    with pytest.raises(InvalidCredentials):
        open_session(tx, user.email, "correct horse battery")
    assert open_session(tx, user.email, "a newer password")
    with pytest.raises(InvalidSignature):
        reset_password(tx, token, "another password", secret_key)
    stored = tx.scalars(select(User.password_hash).where(User.email == user.email)).one()
    assert stored.startswith("$argon2id$")


def commands(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*path, name))


def test_groups_are_looked_into() -> None:
    assert {("up",), ("worker", "generation"), ("ledger", "verify")} <= set(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0, result.output
    about = result.output.partition("Usage:")[2].splitlines()[2:4]
    assert any(line.strip() for line in about), result.output
