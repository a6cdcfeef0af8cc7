"""/v1/artifacts: adapters trained elsewhere come in, own models go out."""

from typing import Annotated, Literal, Self

from anyio import to_thread
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile

from app.accounts.authenticate import Caller
from app.database import transaction
from app.dependencies import Transaction, requires, uploader
from app.errors import InvalidFilename, UnsafeFormat
from app.files.upload import check_disk
from app.forms import FILE, TEXT, file_field, multipart_body, needed_text, read_form, text_field
from app.variants.archive import archive
from app.variants.artifacts import upload_adapter
from app.variants.export import exported
from app.variants.rules import check_suffix
from app.variants.tables import Variant
from models_registry.adapter import CONFIG, MAX_CONFIG_BYTES, WEIGHTS

router = APIRouter(prefix="/v1", tags=["models"])

FILES, TEXTS = frozenset({WEIGHTS, CONFIG}), frozenset({"base_model", "suffix"})
OPENAPI_BODY = multipart_body(
    needed={WEIGHTS: FILE, CONFIG: FILE, "base_model": TEXT},
    optional={"suffix": TEXT},
)
# Endings that only a pickle has: named here so that the refusal says the true reason.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class ArtifactOut(BaseModel):
    """`model` is the name to call it by."""

    id: str
    object: str = "artifact"
    digest: str
    model: str
    base_model: str
    rank: int
    parameters: int
    bytes: int

    @classmethod
    def of(cls, variant: Variant) -> Self:
        return cls(
            id=variant.id,
            digest=variant.digest,
            model=variant.model,
            base_model=variant.base_id,
            rank=variant.rank,
            parameters=variant.parameters,
            bytes=variant.bytes,
        )


@router.post("/artifacts", status_code=201, openapi_extra=OPENAPI_BODY)
async def create_artifact(request: Request, caller: Annotated[Caller, Depends(uploader("models"))]) -> ArtifactOut:
    """A plain PEFT LoRA adapter: exactly these two files."""
    check_disk(int(request.headers.get("content-length", "0")))
    form = await read_form(request, FILES, TEXTS)
    try:
        return await to_thread.run_sync(take_in, caller, form)
    finally:
        await form.close()


@router.get("/artifacts/{model}/content", response_class=Response)
def read_content(
    model: str,
    tx: Transaction,
    caller: Annotated[Caller, Depends(requires("models"))],
    format: Literal["plain", "merged"] = "plain",
) -> Response:
    """An own model's files as a ZIP. Plain: an adapter as PEFT reads it, whole weights as a Hugging Face folder.
    Merged: a Hugging Face folder of the base with the adapter added in; 202 while a worker makes it, then ask again.
    """
    files = exported(tx, caller.account_id, model, format == "merged")
    if files is None:
        waiting = {"object": "artifact.export", "model": model, "format": format, "status": "preparing"}
        return JSONResponse(waiting, 202, {"retry-after": "3"})
    return archive(model, files, format == "merged")


def take_in(caller: Caller, form: FormData) -> ArtifactOut:
    weights, config = (checked_upload(form, name) for name in (WEIGHTS, CONFIG))
    base_id, suffix = needed_text(form, "base_model"), check_suffix(text_field(form, "suffix"))
    text = config.file.read(MAX_CONFIG_BYTES + 1)
    with transaction() as tx:
        return ArtifactOut.of(upload_adapter(tx, caller.account_id, base_id, suffix, weights.file, text))


def checked_upload(form: FormData, name: str) -> UploadFile:
    upload = file_field(form, name)
    check_upload_name(upload.filename or "")
    return upload


def check_upload_name(name: str) -> None:
    """The name is never used; a wrong one still tells that the client sent something else."""
    if name.lower().endswith(PICKLES):
        raise UnsafeFormat("Pickled weights are never opened; send safetensors.")
    if "/" in name or "\\" in name or "\0" in name or len(name) > 255:
        raise InvalidFilename("That is not a plain file name.", param="filename")
