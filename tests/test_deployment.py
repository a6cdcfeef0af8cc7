"""docker-compose.yml and the Dockerfile name only what exists: commands, variables, packages."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from app.cli.main import app
from app.settings import Settings

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: each for name, each in COMPOSE["services"].items() if each["image"].startswith("gptstore-")}


def variables(model: type[BaseModel], prefix: str = "GPTSTORE_") -> set[str]:
    """Every name that pydantic-settings would read."""
    names = set()
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            names |= variables(nested, f"{prefix}{name.upper()}__")
        else:
            names.add(f"{prefix}{name.upper()}")
    return names


@pytest.mark.parametrize("service", OURS)
def test_each_service_runs_a_command_that_exists(service: str) -> None:
    result = CliRunner().invoke(app, [*OURS[service]["command"], "--help"])
    assert result.exit_code == 0, result.output


def test_each_variable_is_a_setting() -> None:
    used = {name for each in OURS.values() for name in each["environment"]}
    assert used <= variables(Settings)
    assert {"GPTSTORE_DATABASE_URL", "GPTSTORE_REDIS_URL", "GPTSTORE_ARTIFACTS_URL"} <= used


def test_variables_in_the_readme_are_settings() -> None:
    text = (ROOT / "README.md").read_text()
    clients = {"GPTSTORE_URL", "GPTSTORE_API_KEY", "GPTSTORE_DATA"}
    assert set(re.findall(r"GPTSTORE_[A-Z_]*[A-Z]", text)) <= variables(Settings) | clients


def test_the_api_image_carries_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {re.split(r"[\[;<>=! ]", name)[0] for name in project["dependencies"]}
    assert not core & {"torch", "transformers", "peft", "accelerate"}
    assert COMPOSE["services"]["api"]["build"]["args"]["EXTRAS"] == ""
    assert set(project["optional-dependencies"]["workers"]) >= {"torch", "transformers", "peft"}


def test_the_dockerfile_copies_what_exists_and_is_not_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert any(line.startswith("USER ") and line != "USER root" for line in lines)


def test_every_version_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.split(r"[\[;<>=! ]", name)[0] for name in wanted}
    assert {normal(name) for name in names} <= {normal(name) for name in pins}
    assert pins["torch"] == "2.13.0"


def normal(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()
