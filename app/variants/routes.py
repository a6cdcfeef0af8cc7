"""POST /v1/artifacts."""

from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, UploadFile
from pydantic import BaseModel

from app.accounts.authenticate import Caller
from app.dependencies import Transaction, requires
from app.errors import InvalidFilename, UnsafeFormat
from app.variants.artifacts import upload_adapter
from app.variants.rules import check_suffix

router = APIRouter(prefix="/v1", tags=["models"])
ModelOwner = Annotated[Caller, Depends(requires("models"))]

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


@router.post("/artifacts", status_code=201)
def create_artifact(
    tx: Transaction,
    caller: ModelOwner,
    weights: Annotated[UploadFile, File(alias="adapter_model.safetensors")],
    config: Annotated[UploadFile, File(alias="adapter_config.json")],
    base_model: Annotated[str, Form(max_length=80)],
    suffix: Annotated[str | None, Form(max_length=64)] = None,
) -> ArtifactOut:
    """A plain PEFT LoRA adapter: exactly these two files."""
    for upload in (weights, config):
        check_upload_name(upload.filename or "")
    variant = upload_adapter(tx, caller.account_id, base_model, check_suffix(suffix), weights.file, config.file.read())
    return ArtifactOut(
        id=variant.id,
        digest=variant.digest,
        model=variant.model,
        base_model=variant.base_id,
        rank=variant.rank,
        parameters=variant.parameters,
        bytes=variant.bytes,
    )


def check_upload_name(name: str) -> None:
    """The name is never used; a wrong one still tells that the client sent something else."""
    if name.lower().endswith(PICKLES):
        raise UnsafeFormat("Pickled weights are never opened; send safetensors.")
    if "/" in name or "\\" in name or "\0" in name or len(name) > 255:
        raise InvalidFilename("That is not a plain file name.", param="filename")
