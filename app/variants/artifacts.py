"""An adapter trained elsewhere comes in: checked, stored under its digest, callable by its owner at once."""

import json
from collections.abc import Iterator
from typing import IO

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import errors
from app.accounts.tables import Account
from app.files.tables import File
from app.settings import get_settings
from app.variants.bases import find_ready_base
from app.variants.tables import Variant
from app.variants.variants import create_variant
from models_registry import errors as registry
from models_registry.adapter import CONFIG, WEIGHTS, check_adapter
from models_registry.store import CHUNK, open_store

ANSWERS: dict[type[registry.RegistryError], type[errors.AppError]] = {
    registry.UnsafeFormat: errors.UnsafeFormat,
    registry.InvalidSafetensors: errors.InvalidSafetensors,
    registry.NonFiniteWeights: errors.NonFiniteWeights,
    registry.InvalidAdapterConfig: errors.InvalidAdapterConfig,
    registry.TooLarge: errors.RequestTooLarge,
    registry.StorageFull: errors.InsufficientStorage,
}


def upload_adapter(
    tx: Session, account_id: str, base_id: str, suffix: str, weights: IO[bytes], config: bytes
) -> Variant:
    """Raises ModelNotFound, UnsafeFormat, InvalidSafetensors, InvalidAdapterConfig, NonFiniteWeights,
    RequestTooLarge over the account's quota, InsufficientStorage.
    """
    base = find_ready_base(tx, base_id)
    room = remaining_quota(tx, account_id)
    store = open_store(get_settings().artifacts_url, get_settings().api.min_free_disk_bytes)
    try:
        with store.scratch() as folder:
            size = 0
            with (folder / WEIGHTS).open("wb") as target:
                for chunk in chunks_of(weights):
                    size += len(chunk)
                    if size > room:
                        raise registry.TooLarge("The account's storage quota is used up.")
                    target.write(chunk)
            info = check_adapter(folder / WEIGHTS, config, base.shape["linears"])
            (folder / CONFIG).write_text(json.dumps(dict(info.config), sort_keys=True))
            manifest = store.put_folder(folder, "adapter", {"base": base_id})
    except registry.RegistryError as error:
        raise ANSWERS[type(error)](str(error)) from error
    return create_variant(tx, account_id, base_id, manifest.digest, info, "upload", suffix)


def chunks_of(source: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: source.read(CHUNK), b"")


def remaining_quota(tx: Session, account_id: str) -> int:
    """Bytes this account may still store. Its uploads wait for each other, so two cannot share the same room."""
    tx.scalar(select(Account.id).where(Account.id == account_id).with_for_update(key_share=True))
    files = select(func.coalesce(func.sum(File.bytes), 0)).where(
        File.account_id == account_id, File.deleted_at.is_(None)
    )
    variants = select(func.coalesce(func.sum(Variant.bytes), 0)).where(
        Variant.account_id == account_id, Variant.deleted_at.is_(None)
    )
    used = int(tx.scalar(files) or 0) + int(tx.scalar(variants) or 0)
    return max(get_settings().api.account_quota_bytes - used, 0)
