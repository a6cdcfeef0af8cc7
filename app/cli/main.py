"""The `gptstore` command: run the store or its parts, operate it, use it as a client."""

import typer

from app.cli import client, operator, parts

app = typer.Typer(
    help="Train, publish, sell, buy and call your own GPTs, on your own machines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
parts.register(app)
operator.register(app)
client.register(app)

if __name__ == "__main__":
    app()
