"""The only wiring: every door of the store, its middleware and its error answers."""

from fastapi import FastAPI


def create_app() -> FastAPI:
    """The API and the pages, as one ASGI application."""
    return FastAPI(title="GPT Store")
