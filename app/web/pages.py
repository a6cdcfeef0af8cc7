"""All pages, joined: what `create_app` includes."""

from fastapi import FastAPI

from app.web import (
    files,
    jobs,
    keys,
    listing,
    manage,
    publish,
    reference,
    sign_in,
    storefront,
    studio,
    training,
    wallet,
)
from app.web.errors import error_page
from app.web.static_files import FOLDER, HashedFiles

# The listing page comes last: its address begins with any handle.
ROUTERS = [
    storefront.router,
    sign_in.router,
    studio.router,
    publish.router,
    training.router,
    jobs.router,
    files.router,
    wallet.router,
    keys.router,
    reference.router,
    manage.router,
    listing.router,
]


def install_pages(app: FastAPI) -> None:
    """Pages, their style and scripts, and error pages for browsers."""
    app.state.error_page = error_page
    app.mount("/static", HashedFiles(directory=FOLDER), name="static")
    for router in ROUTERS:
        app.include_router(router, include_in_schema=False)
