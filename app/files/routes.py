"""/v1/files: upload, list, read, delete, content, validation report, full reports and cleanings."""

from collections.abc import Iterator
from typing import IO, Annotated, Literal
from urllib.parse import quote

from anyio import to_thread
from fastapi import APIRouter, BackgroundTasks, Depends, Query, Request
from starlette.responses import StreamingResponse

from app.accounts.authenticate import Caller
from app.database import transaction
from app.dependencies import Transaction, requires, uploader
from app.files.delete import delete_file, remove_bytes
from app.files.find import find_file, find_report, list_files
from app.files.report_schemas import CleanCreate, FileReportOut, ReportCreate
from app.files.reports import CLEAN, MOST_KEPT, REPORT, ask, find_file_report, list_reports
from app.files.rules import FINE_TUNE
from app.files.schemas import FileDeleted, FileOut, ReportOut
from app.files.structure import check_training_structure
from app.files.upload import CHUNK, check_disk, save_file, uploads
from app.files.upload_form import FILES, OPENAPI_BODY, TEXTS, UploadForm, check_form
from app.forms import read_form
from app.wire import Page, check_cursor, page_of

router = APIRouter(prefix="/v1/files", tags=["files"])
Owner = Annotated[Caller, Depends(requires("files"))]


@router.post("", openapi_extra=OPENAPI_BODY)
async def create_file(request: Request, caller: Annotated[Caller, Depends(uploader("files"))]) -> FileOut:
    check_disk(int(request.headers.get("content-length", "0")))
    form = await read_form(request, FILES, TEXTS)
    try:
        return await to_thread.run_sync(take_in, caller, check_form(form))
    finally:
        await form.close()


def take_in(caller: Caller, form: UploadForm) -> FileOut:
    if form.purpose == FINE_TUNE:
        check_training_structure(form.filename, form.stream)
    with transaction() as tx:
        return FileOut.of(save_file(tx, caller.account_id, form.stream, form.filename, form.purpose, form.lifetime))


@router.get("")
def read_files(
    tx: Transaction,
    caller: Owner,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    order: Literal["asc", "desc"] = "desc",
) -> Page[FileOut]:
    cursor = check_cursor(after, "file")
    files = list_files(tx, caller.account_id, purpose, cursor, limit, order == "desc")
    return page_of([FileOut.of(file) for file in files], [file.id for file in files], limit)


@router.get("/{file_id}")
def read_file(file_id: str, tx: Transaction, caller: Owner) -> FileOut:
    return FileOut.of(find_file(tx, caller.account_id, file_id))


@router.delete("/{file_id}")
def remove_file(file_id: str, tx: Transaction, caller: Owner, after_commit: BackgroundTasks) -> FileDeleted:
    file = delete_file(tx, caller.account_id, file_id)
    after_commit.add_task(remove_bytes, file.digest)
    return FileDeleted(id=file.id)


@router.get("/{file_id}/content")
def read_content(file_id: str, tx: Transaction, caller: Owner) -> StreamingResponse:
    # Shared: until the bytes are open, nobody deletes them.
    file = find_file(tx, caller.account_id, file_id, share=True)
    headers = {
        "content-length": str(file.bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename)}",
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(
        pieces(uploads().open(file.digest)), headers=headers, media_type="application/octet-stream"
    )


def pieces(stream: IO[bytes]) -> Iterator[bytes]:
    with stream:
        while piece := stream.read(CHUNK):
            yield piece


@router.get("/{file_id}/report")
def read_report(file_id: str, tx: Transaction, caller: Owner) -> ReportOut:
    file = find_file(tx, caller.account_id, file_id)
    return ReportOut.of(file, find_report(tx, file.id))


@router.post("/{file_id}/reports", status_code=201)
def create_report(file_id: str, body: ReportCreate, tx: Transaction, caller: Owner) -> FileReportOut:
    return FileReportOut.of(ask(tx, caller.account_id, file_id, REPORT, body.options(), body.against))


@router.post("/{file_id}/clean", status_code=201)
def clean_file(file_id: str, body: CleanCreate, tx: Transaction, caller: Owner) -> FileReportOut:
    return FileReportOut.of(ask(tx, caller.account_id, file_id, CLEAN, body.options(), body.against))


@router.get("/{file_id}/reports")
def read_reports(file_id: str, tx: Transaction, caller: Owner) -> Page[FileReportOut]:
    """The newest twenty."""
    reports = list_reports(tx, find_file(tx, caller.account_id, file_id).id)
    return page_of([FileReportOut.of(each) for each in reports], [each.id for each in reports], MOST_KEPT)


@router.get("/{file_id}/reports/{report_id}")
def read_full_report(file_id: str, report_id: str, tx: Transaction, caller: Owner) -> FileReportOut:
    return FileReportOut.of(find_file_report(tx, caller.account_id, file_id, report_id))
