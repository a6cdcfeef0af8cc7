"""What routes ask for: the request's transaction and its caller. FastAPI only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from app.accounts.authenticate import Caller, caller_by_key, caller_by_session
from app.accounts.csrf import check_csrf
from app.accounts.throttle import FailureThrottle
from app.database import transaction
from app.errors import AppError, Unauthorized
from app.settings import get_settings

SESSION_COOKIE = "gptstore_session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def request_transaction() -> Iterator[Session]:
    with transaction() as tx:
        yield tx


# scope="function": the commit happens BEFORE the response leaves, so a failed commit is never answered with 200.
Transaction = Annotated[Session, Depends(request_transaction, scope="function")]


@lru_cache
def throttle() -> FailureThrottle:
    return FailureThrottle(get_settings().api.failed_logins_per_minute)


def client_address(request: Request) -> str:
    """The peer, or what a configured proxy says the peer is."""
    peer = request.client.host if request.client else "unknown"
    forwarded = request.headers.get("x-forwarded-for")
    if forwarded and peer in get_settings().api.trusted_proxies:
        return forwarded.rpartition(",")[2].strip()
    return peer


@contextmanager
def slowing_guesses(request: Request, what: str) -> Iterator[None]:
    """Count refusals of `what` per caller. Raises RateLimited after a burst of them."""
    name = f"{client_address(request)} {what}"
    throttle().check(name)
    try:
        yield
    except AppError:
        throttle().failed(name)
        raise


def identify(tx: Session, request: Request) -> Caller:
    """The caller behind `Authorization: Bearer …` or the session cookie (then with x-csrf-token, unless reading).

    Raises Unauthorized, RateLimited after a burst of failures, CsrfFailed.
    """
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret:
        name = f"{client_address(request)} {secret[:17]}"
        throttle().check(name)
        try:
            return caller_by_key(tx, secret.strip())
        except Unauthorized:
            throttle().failed(name)
            raise
    token = request.cookies.get(SESSION_COOKIE)
    if token:
        if request.method not in SAFE_METHODS:
            check_csrf(get_settings().secret_key, token, request.headers.get("x-csrf-token", ""))
        return caller_by_session(tx, token)
    raise Unauthorized("You did not provide an API key. Send it as 'Authorization: Bearer gpts_…'.")


def current_caller(tx: Transaction, request: Request) -> Caller:
    return identify(tx, request)


CurrentCaller = Annotated[Caller, Depends(current_caller)]


def current_viewer(tx: Transaction, request: Request) -> Caller | None:
    """None for a visitor; a key or session that is sent must still be good."""
    if "authorization" in request.headers or SESSION_COOKIE in request.cookies:
        return identify(tx, request)
    return None


Viewer = Annotated[Caller | None, Depends(current_viewer)]


def requires(scope: str) -> Callable[[Caller], Caller]:
    """A dependency that gives the caller, refusing keys without `scope`."""

    def caller_with_scope(caller: CurrentCaller) -> Caller:
        caller.require(scope)
        return caller

    return caller_with_scope


def uploader(scope: str) -> Callable[[Request], Caller]:
    """As `requires`, in a transaction of its own: an upload may take minutes and holds no connection meanwhile."""

    def caller_before_body(request: Request) -> Caller:
        with transaction() as tx:
            caller = identify(tx, request)
        caller.require(scope)
        return caller

    return caller_before_body
