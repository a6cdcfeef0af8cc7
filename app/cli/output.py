"""How commands answer: a line for people, or JSON for programs."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


def show(answer: Mapping[str, Any], as_json: bool, line: str) -> None:
    typer.echo(json.dumps(answer, ensure_ascii=False, indent=2) if as_json else line)
