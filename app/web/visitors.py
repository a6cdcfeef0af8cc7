"""Who looks at a page: anybody, or a member (signed in by the session cookie). API keys open no pages."""

import secrets
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import HTMLResponse

from app.accounts.authenticate import Caller, caller_by_session
from app.accounts.csrf import csrf_token
from app.billing.wallet import read_wallet
from app.database import transaction
from app.dependencies import SESSION_COOKIE
from app.errors import AppError, Unauthorized
from app.settings import get_settings
from app.web.rendering import page


@dataclass(frozen=True)
class Visitor:
    """`caller` is None for somebody unknown; `token` is the session's, `available_micros` the wallet's."""

    request: Request
    caller: Caller | None = None
    token: str = ""
    available_micros: int = 0

    @property
    def account_id(self) -> str | None:
        return self.caller.account_id if self.caller else None

    @property
    def csrf(self) -> str:
        return csrf_token(get_settings().secret_key, self.token) if self.caller else ""

    def show(self, template: str, refusal: AppError | None = None, **context: Any) -> HTMLResponse:
        """The page as this visitor sees it; a refusal gives it its status and stands beside its field.

        Each form gets a fresh idempotency key: a double click or a reload sends the same one again.
        """
        shared = {
            "visitor": self,
            "path": self.request.url.path,
            "notice": self.request.query_params.get("done", ""),
            "refusal": refusal,
            "values": {},
            "idempotency_key": secrets.token_urlsafe(16),
        }
        return page(template, refusal.status if refusal else 200, **shared | context)


@dataclass(frozen=True)
class Member(Visitor):
    """Surely signed in."""

    caller: Caller
    token: str = ""

    @property
    def account_id(self) -> str:
        return self.caller.account_id


def visitor(request: Request) -> Visitor:
    """By the cookie; an expired or unknown one makes a visitor, not an error: everybody may browse."""
    token = request.cookies.get(SESSION_COOKIE)
    return visitor_of(request, token) if token else Visitor(request)


def visitor_of(request: Request, token: str) -> Visitor:
    with transaction() as tx:
        try:
            caller = caller_by_session(tx, token)
        except Unauthorized:
            return Visitor(request)
        return Member(request, caller, token, read_wallet(tx, caller.account_id).available_micros)


def member(found: Annotated[Visitor, Depends(visitor)]) -> Member:
    """Raises Unauthorized, which the pages answer by asking to sign in."""
    if not isinstance(found, Member):
        raise Unauthorized("Sign in first.")
    return found


AnyVisitor = Annotated[Visitor, Depends(visitor)]
SignedIn = Annotated[Member, Depends(member)]
