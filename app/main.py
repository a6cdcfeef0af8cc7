"""The only wiring: every door of the store, its middleware and its error answers."""

from fastapi import FastAPI

import app.tables  # noqa: F401 (every table, before the first query)
from app.accounts import routes as accounts
from app.error_responses import install_error_responses
from app.files import routes as files
from app.onboarding import routes as onboarding
from app.request_guard import RequestGuard
from app.settings import get_settings
from app.variants import routes as variants

ROUTERS = [onboarding.router, accounts.router, variants.router, files.router]


def create_app() -> FastAPI:
    """The API and the pages, as one ASGI application."""
    api = FastAPI(title="GPT Store", version="0.1.0", redoc_url=None)
    install_error_responses(api)
    for router in ROUTERS:
        api.include_router(router)
    api.add_middleware(RequestGuard, settings=get_settings())
    return api
