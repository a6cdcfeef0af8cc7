"""One's files: upload, what validation and reports say of them, cleaning."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.database import transaction
from app.dependencies import Transaction
from app.errors import AppError, InvalidValue, MissingParameter
from app.files.delete import delete_file, remove_bytes
from app.files.find import find_file, find_report, list_files
from app.files.report_schemas import CleanCreate, ReportCreate
from app.files.reports import CLEAN, OPEN, REPORT, ask, list_reports
from app.files.rules import FINE_TUNE
from app.web.forms import MemberForm, Posted, UploadForm, checked, submit
from app.web.training import check_upload, save
from app.web.visitors import Member, SignedIn
from app.wire import check_cursor

router = APIRouter()
FILES, OTHERS = 20, 50
RULES = {
    "near_duplicates": "Duplicates and near duplicates",
    "personal_data": "Rows with e-mail addresses, phone or card numbers, other personal data",
    "secrets": "Rows with keys and tokens",
    "profanity": "Rows with swear words",
    "leakage": "Rows that the compared file has too",
    "control_characters": "Control characters (taken out; the row stays)",
}


@router.get("/files")
def read_files(member: SignedIn, after: Annotated[str, Query(max_length=40)] | None = None) -> Response:
    return files_page(member, after, None)


def files_page(member: Member, after: str | None, refusal: AppError | None) -> Response:
    with transaction() as tx:
        files = list_files(tx, member.account_id, FINE_TUNE, check_cursor(after, "file"), FILES)
    return member.show("files", refusal, files=files[:FILES], more=len(files) > FILES)


@router.post("/files")
def upload_file(member: SignedIn, form: UploadForm) -> Response:
    """The file is checked before the transaction: reading it may take a while."""

    def effect(tx: Session) -> str:
        def saved() -> str:
            return f"/files/{save(tx, member.account_id, form, 'file')}"

        return form.once(tx, member.account_id, saved)

    try:
        if "file" not in form.files:
            raise MissingParameter("Choose a file with your examples.", param="file")
        check_upload(form.files["file"], "file")
    except AppError as refusal:
        return files_page(member, None, refusal)
    return submit(effect, lambda refusal: files_page(member, None, refusal))


@router.get("/files/{file_id}")
def read_file(file_id: str, member: SignedIn, tx: Transaction) -> Response:
    return member.show("file", **context_of(tx, member, file_id))


def file_page(member: Member, file_id: str, refusal: AppError) -> Response:
    with transaction() as tx:
        return member.show("file", refusal, **context_of(tx, member, file_id))


def context_of(tx: Session, member: Member, file_id: str) -> dict[str, Any]:
    file = find_file(tx, member.account_id, file_id)
    validation, reports = find_report(tx, file.id), list_reports(tx, file.id)
    others = list_files(tx, member.account_id, FINE_TUNE, None, OTHERS)
    return {
        "file": file,
        "validation": validation.report if validation else None,
        "reports": reports,
        "waiting": file.status in ("uploaded", "processing") or any(each.status in OPEN for each in reports),
        "others": [(each.id, f"{each.filename} ({each.id[-6:]})") for each in others if each.id != file.id],
        "rules": RULES,
    }


def asked(member: Member, form: Posted, file_id: str, ask_for: Callable[[Session], object]) -> Response:
    def effect(tx: Session) -> str:
        def done() -> str:
            ask_for(tx)
            return f"/files/{file_id}"

        return form.once(tx, member.account_id, done)

    return submit(effect, lambda refusal: file_page(member, file_id, refusal))


@router.post("/files/{file_id}/reports")
def ask_report(file_id: str, member: SignedIn, form: MemberForm) -> Response:
    wanted = checked(ReportCreate, {"against": form.fields.get("against")})
    return asked(
        member, form, file_id, lambda tx: ask(tx, member.account_id, file_id, REPORT, wanted.options(), wanted.against)
    )


@router.post("/files/{file_id}/clean")
def ask_clean(file_id: str, member: SignedIn, form: MemberForm) -> Response:
    def ask_for(tx: Session) -> None:
        rules = [rule for rule in RULES if rule in form.fields]
        fields = {name: form.fields.get(name) for name in ("language", "against")}
        wanted = checked(CleanCreate, {"rules": rules, **fields})
        if not rules and not wanted.language:
            raise InvalidValue("Choose what to drop.", param="rules")
        ask(tx, member.account_id, file_id, CLEAN, wanted.options(), wanted.against)

    return asked(member, form, file_id, ask_for)


@router.post("/files/{file_id}/delete")
def remove_file(file_id: str, member: SignedIn, form: MemberForm) -> Response:
    digests: list[str] = []

    def effect(tx: Session) -> str:
        digests.append(delete_file(tx, member.account_id, file_id).digest)
        return "/files?done=deleted"

    answer = submit(effect, lambda refusal: file_page(member, file_id, refusal))
    for digest in digests:
        remove_bytes(digest)
    return answer
