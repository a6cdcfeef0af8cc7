"""How client commands talk to the store."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import openai
import typer

from app.cli.store_client import Refused, StoreClient, logged_in


@contextmanager
def talking() -> Iterator[StoreClient]:
    """The logged-in client; a refusal becomes one line and exit code 1."""
    try:
        yield logged_in()
    except (Refused, openai.APIError, httpx.HTTPError) as error:
        typer.echo(f"error: {getattr(error, 'message', None) or error}", err=True)
        raise typer.Exit(1) from error
