"""Starting a fine-tune: one form takes the data in and starts the job."""

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.datastructures import UploadFile
from starlette.responses import Response

from app.database import transaction
from app.errors import AppError, InvalidTrainingFile, MissingParameter, RequestTooLarge
from app.files.rules import FINE_TUNE, check_filename
from app.files.structure import check_training_structure, table_format
from app.files.upload import save_file
from app.fine_tuning.schemas import JobCreate
from app.fine_tuning.start import start
from app.settings import get_settings
from app.variants.bases import ready_bases
from app.variants.variants import list_variants
from app.web.forms import Posted, UploadForm, checked, submit
from app.web.visitors import Member, SignedIn

router = APIRouter()


class Terms(BaseModel):
    """The text fields; `n_epochs` left alone means that the store chooses."""

    model: str
    suffix: str | None = None
    n_epochs: int | None = None

    def job(self, training_file: str, validation_file: str | None) -> JobCreate:
        chosen = {} if self.n_epochs is None else {"n_epochs": self.n_epochs}
        method = {"type": "supervised", "supervised": {"hyperparameters": chosen}}
        files = {"training_file": training_file, "validation_file": validation_file}
        return checked(JobCreate, {"model": self.model, "suffix": self.suffix, "method": method, **files})


@router.get("/jobs/new")
def training_form(member: SignedIn, model: str = "") -> Response:
    return training_page(member, None, {"model": model})


def training_page(member: Member, refusal: AppError | None, values: dict[str, str]) -> Response:
    with transaction() as tx:
        bases, own = ready_bases(tx), list_variants(tx, member.account_id)
    return member.show("new_job", refusal, values=values, bases=bases, own=own)


@router.post("/jobs")
def start_job(member: SignedIn, form: UploadForm) -> Response:
    """Files are checked before the transaction: reading them may take a while."""

    def effect(tx: Session) -> str:
        terms = form.parse(Terms)

        def started() -> str:
            files = [save(tx, member.account_id, form, name) for name in ("training_file", "validation_file")]
            job = start(tx, member.account_id, terms.job(files[0] or "", files[1]).request())
            return f"/jobs/{job.id}"

        return form.once(tx, member.account_id, started)

    try:
        check_dataset(form, "training_file", required=True)
        check_dataset(form, "validation_file", required=False)
    except AppError as refusal:
        return training_page(member, refusal, form.values)
    return submit(effect, lambda refusal: training_page(member, refusal, form.values))


def check_dataset(form: Posted, name: str, required: bool) -> None:
    """Raises MissingParameter, InvalidFilename, RequestTooLarge, InvalidTrainingFile, beside their field."""
    upload: UploadFile | None = form.files.get(name)
    if upload is None:
        if required:
            raise MissingParameter("Choose a JSONL file with your examples.", param=name)
        return
    if table_format(upload.filename or ""):
        raise InvalidTrainingFile("Tables are turned into rows first: upload it on the page of your files.", param=name)
    check_upload(upload, name)


def check_upload(upload: UploadFile, name: str) -> None:
    """Raises InvalidFilename, RequestTooLarge, InvalidTrainingFile, beside the field of this name."""
    limit = get_settings().api.max_upload_bytes
    try:
        check_filename(upload.filename or "")
        if (upload.size or 0) > limit:
            raise RequestTooLarge(f"A file may have at most {limit} bytes.")
        check_training_structure(upload.filename or "", upload.file)
    except AppError as error:
        error.param = name
        raise


def save(tx: Session, account_id: str, form: Posted, name: str) -> str | None:
    upload = form.files.get(name)
    return save_file(tx, account_id, upload.file, upload.filename or "", FINE_TUNE).id if upload else None
