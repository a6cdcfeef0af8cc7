"""The wallet: what is in it, what every entry was about, what was earned; topping up with play money."""

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.billing.explain import subjects
from app.billing.gateways import sandbox
from app.billing.tables import LedgerPosting, LedgerTransfer
from app.billing.top_up import top_up
from app.billing.usage import earnings
from app.billing.wallet import read_wallet, wallet_entries
from app.database import transaction
from app.errors import AppError
from app.settings import get_settings
from app.web.forms import MemberForm, submit
from app.web.money import Micros
from app.web.visitors import Member, SignedIn

router = APIRouter()
ENTRIES = 100
KINDS = {
    "welcome_credit": "Welcome credit",
    "top_up": "Top-up",
    "purchase": "Access bought",
    "generation": "Call",
    "generation_hold": "Set aside for a call",
    "generation_release": "Call ended without a charge",
    "fine_tuning": "Training",
    "fine_tuning_hold": "Set aside for training",
    "fine_tuning_release": "Training ended without a charge",
}


class Amount(BaseModel):
    """Typed in dollars."""

    amount_micros: Micros


@router.get("/wallet")
def read(member: SignedIn, after: Annotated[int, Query(ge=1, lt=2**63)] | None = None) -> Response:
    return wallet_page(member, after=after)


def wallet_page(member: Member, refusal: AppError | None = None, after: int | None = None, **shown: Any) -> Response:
    with transaction() as tx:
        rows = wallet_entries(tx, member.account_id, after, ENTRIES)
        earned, by_kind = earnings(tx, member.account_id)
        context = {
            "wallet": read_wallet(tx, member.account_id),
            "entries": transfers(rows[:ENTRIES]),
            "subjects": subjects(tx, [transfer for _, transfer in rows]),
            "kinds": KINDS,
            "earned": earned,
            "earned_by_kind": by_kind,
            "older": rows[ENTRIES - 1][0].id if len(rows) > ENTRIES else None,
            "may_top_up": get_settings().sandbox_gateway,
        }
    return member.show("wallet", refusal, **context | shown)


def transfers(rows: Sequence[tuple[LedgerPosting, LedgerTransfer]]) -> list[dict[str, Any]]:
    """One line per transfer: what came in or went out, what was set aside, and the balance left available."""
    lines = []
    for _, group in groupby(rows, key=lambda row: row[1].id):
        postings = list(group)
        sides = {posting.ledger_account.rpartition(":")[2]: posting for posting, _ in postings}
        net = sum(posting.amount_micros for posting in sides.values())
        line = {"transfer": postings[0][1], "net": net, "held": sides.get("held"), "available": sides.get("available")}
        lines.append(line)
    return lines


@router.post("/wallet/top-up")
def add_money(member: SignedIn, form: MemberForm) -> Response:
    def effect(tx: Session) -> str:
        amount = form.parse(Amount).amount_micros

        def topped_up() -> str:
            top_up(tx, member.account_id, amount, sandbox.NAME)
            return "/wallet?done=topped-up"

        return form.once(tx, member.account_id, topped_up)

    return submit(effect, lambda refusal: wallet_page(member, refusal, values=form.values))
