"""Coming and going: sign-up, sign-in, sign-out, a new password by signed link."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from app.accounts.reset_password import reset_password
from app.accounts.routes import set_session_cookie
from app.accounts.schemas import AccountCreate, SessionCreate
from app.accounts.sessions import close_session, open_session, start_session
from app.database import transaction
from app.dependencies import SESSION_COOKIE, Transaction, slowing_guesses
from app.errors import AppError
from app.onboarding.join import join
from app.settings import get_settings
from app.web.forms import MemberForm, OpenForm, local_path, submit
from app.web.visitors import AnyVisitor, SignedIn, visitor_of

router = APIRouter()
Next = Annotated[str, Query(max_length=500)]


@router.get("/sign-in")
def sign_in_form(visitor: AnyVisitor, next: Next = "/") -> Response:
    return visitor.show("sign_in", next=local_path(next))


@router.post("/sign-in")
def sign_in(visitor: AnyVisitor, form: OpenForm, request: Request) -> Response:
    back = local_path(form.fields.get("next", "/"))
    try:
        with slowing_guesses(request, "sign-in"), transaction() as tx:
            body = form.parse(SessionCreate)
            token, _ = open_session(tx, body.email, body.password)
    except AppError as refusal:
        return visitor.show("sign_in", refusal, next=back, values=form.values)
    response = RedirectResponse(back, 303)
    set_session_cookie(response, token)
    return response


@router.get("/sign-up")
def sign_up_form(visitor: AnyVisitor, next: Next = "/") -> Response:
    return visitor.show("sign_up", next=local_path(next))


@router.post("/sign-up")
def sign_up(visitor: AnyVisitor, form: OpenForm, request: Request) -> Response:
    """Signed in at once. The first API key is shown here and never again, so this answer is no redirect."""
    back = local_path(form.fields.get("next", "/"))
    try:
        with slowing_guesses(request, "sign-up"), transaction() as tx:
            body = form.parse(AccountCreate)
            joined = join(tx, body.email, body.password, body.handle, body.display_name)
            token, _ = start_session(tx, joined.user.id, joined.account.id)
    except AppError as refusal:
        return visitor.show("sign_up", refusal, next=back, values=form.values)
    response = visitor_of(request, token).show("welcome", next=back, secret=joined.secret)
    set_session_cookie(response, token)
    return response


@router.post("/sign-out")
def sign_out(member: SignedIn, form: MemberForm, tx: Transaction) -> Response:
    close_session(tx, member.token)
    response = RedirectResponse("/?done=signed-out", 303)
    response.delete_cookie(SESSION_COOKIE)
    return response


@router.get("/reset-password")
def reset_form(visitor: AnyVisitor, token: Annotated[str, Query(max_length=500)] = "") -> Response:
    return visitor.show("reset_password", token=token)


@router.post("/reset-password")
def reset(visitor: AnyVisitor, form: OpenForm) -> Response:
    """The link's signature is the proof; what it opens is bound to the old password, so it works once."""
    token = form.fields.get("token", "")

    def effect(tx: Session) -> str:
        reset_password(tx, token, form.fields.get("password", ""), get_settings().secret_key)
        return "/sign-in?done=password"

    return submit(effect, lambda refusal: visitor.show("reset_password", refusal, token=token))
