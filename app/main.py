"""The only wiring: every door of the store, its middleware and its error answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI

import app.tables  # noqa: F401 (every table, before the first query)
from app import health
from app.accounts import routes as accounts
from app.billing import routes as billing
from app.catalog import routes as catalog
from app.error_responses import install_error_responses
from app.files import routes as files
from app.fine_tuning import routes as fine_tuning
from app.fine_tuning.bell import Bell
from app.inference import models
from app.inference import routes as inference
from app.inference.relay import Relay
from app.logs import configure_logs
from app.onboarding import routes as onboarding
from app.request_guard import RequestGuard
from app.reviews import routes as reviews
from app.settings import get_settings
from app.variants import routes as variants
from app.web.pages import install_pages

ROUTERS = [
    inference.router,  # first: routes are tried in order, and finding the last one takes milliseconds
    health.router,
    onboarding.router,
    accounts.router,
    files.router,
    fine_tuning.router,
    variants.router,
    catalog.router,
    billing.router,
    reviews.router,
    models.router,
]

UPLOADS = frozenset({"/v1/files", "/v1/artifacts", "/jobs", "/files"})


@asynccontextmanager
async def lifespan(api: FastAPI) -> AsyncIterator[None]:
    """The relay lives as long as the event loop; threads for sync routes are as many as settings say."""
    to_thread.current_default_thread_limiter().total_tokens = get_settings().api.threads
    relay = api.state.relay = Relay()
    relay.start()
    bell = api.state.bell = Bell()
    yield
    await bell.stop()
    await relay.stop()


def create_app() -> FastAPI:
    """The API and the pages, as one ASGI application."""
    configure_logs()
    api = FastAPI(title="GPT Store", version="0.1.0", docs_url=None, redoc_url=None, lifespan=lifespan)
    install_error_responses(api)
    for router in ROUTERS:
        api.include_router(router)
    install_pages(api)
    api.add_middleware(RequestGuard, settings=get_settings(), uploads=UPLOADS)
    return api
