"""Templates to answers: autoescaped, with the headers that every page carries."""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from starlette.responses import HTMLResponse

from app.catalog.rules import CATEGORIES
from app.web import text
from app.web.static_files import static_url

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# Not `no-referrer`: browsers would send `Origin: null` with the store's own forms.
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
# What a redirect after a form may say: the address names one of these, never its own words.
NOTICES = {
    "bought": "You have access now. Ask it something.",
    "topped-up": "Your wallet is topped up.",
    "reviewed": "Thank you, your review is published.",
    "published": "Your listing is being checked; it goes on sale by itself when it passes.",
    "priced": "The new prices are in force.",
    "version": "The version is being checked; it serves by itself when it passes.",
    "delisted": "It is off sale. Who bought it keeps it.",
    "revoked": "The key is revoked.",
    "deleted": "The file is deleted.",
    "cancelled": "The job will stop within seconds.",
    "signed-out": "You are signed out.",
    "password": "Your password is changed. Sign in with it.",
}


def environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    made = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    names = (
        "usd",
        "in_dollars",
        "cents",
        "signed_usd",
        "dollars",
        "when",
        "beside",
        "plural",
        "duration",
        "markdown",
        "quoted",
    )
    made.filters.update({name: getattr(text, name) for name in names})
    made.globals.update(static=static_url, categories=CATEGORIES, notices=NOTICES)
    return made


TEMPLATES = environment()


def page(template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """One whole page. `template` without its ending."""
    return HTMLResponse(TEMPLATES.get_template(f"{template}.html").render(**context), status, HEADERS)


def fragment(template: str, **context: Any) -> Markup:
    """A part of a page, safe to place in another."""
    return Markup(TEMPLATES.get_template(f"{template}.html").render(**context))  # noqa: S704 (autoescaped)
