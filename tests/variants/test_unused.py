"""What no model needs any more leaves the disk, and nothing else."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save
from sqlalchemy import update
from starlette.testclient import TestClient

from app.database import transaction, utc_now
from app.settings import get_settings
from app.variants.tables import Variant
from app.variants.unused import remove_unused_artifacts
from models_registry.store import ArtifactStore, open_store
from tests.conftest import Base, Signed
from tests.factories import listing_body
from tests.tiny_base import tiny_adapter

HOUR = timedelta(hours=1)


@pytest.fixture
def store(base: Base) -> ArtifactStore:
    return open_store(get_settings().artifacts_url)


def send(client: TestClient, owner: Signed, base: Base, folder: Path, seed: int) -> tuple[str, str]:
    """An adapter of its own weights; its model's name and its digest."""
    numbers = np.random.default_rng(seed)
    weights = {
        name: numbers.normal(size=each.shape).astype(each.dtype)
        for name, each in load_file(folder / "adapter_model.safetensors").items()
    }
    files = {
        "adapter_model.safetensors": ("adapter_model.safetensors", save(weights)),
        "adapter_config.json": ("adapter_config.json", (folder / "adapter_config.json").read_bytes()),
    }
    answer = client.post(
        "/v1/artifacts", headers=owner.headers, data={"base_model": base.id, "suffix": "mine"}, files=files
    )
    assert answer.status_code == 201, answer.text
    return answer.json()["model"], answer.json()["digest"]


def age(store: ArtifactStore, digest: str) -> list[str]:
    """As if put long ago; its files."""
    files = [digest, *(blob.digest for blob in store.manifest(digest).files.values())]
    for each in files:
        os.utime(store.path(each), (0, 0))
    return files


def test_the_files_of_a_deleted_model_go_unless_it_was_published_or_another_has_them_too(
    client: TestClient, signed_up: Callable[..., Signed], base: Base, store: ArtifactStore, tmp_path: Path
) -> None:
    owner, folder = signed_up("seller"), tiny_adapter(base.source, tmp_path)
    kept, published, deleted, recent = (send(client, owner, base, folder, seed) for seed in range(4))
    listing = client.post("/v1/listings", headers=owner.headers, json=listing_body(published[0]))
    assert listing.status_code == 201, listing.text
    for model, _ in (published, deleted, recent):
        assert client.delete(f"/v1/models/{model}", headers=owner.headers).status_code == 200
    with transaction() as tx:
        gone = update(Variant).where(Variant.model.in_([published[0], deleted[0]]))
        tx.execute(gone.values(deleted_at=utc_now() - 2 * HOUR))
    files = {model: age(store, digest) for model, digest in (kept, published, deleted, recent)}
    assert store.folder(deleted[1]).is_dir()
    age(store, base.digest)
    assert remove_unused_artifacts(HOUR) >= 2
    assert all(store.has(each) for model in (kept, published, recent) for each in files[model[0]])
    config = store.manifest(kept[1]).files["adapter_config.json"].digest
    assert [each for each in files[deleted[0]] if store.has(each)] == [config]
    assert store.manifest(base.digest)
    send(client, owner, base, folder, 2)
    assert store.folder(deleted[1]).is_dir()


def test_a_damaged_manifest_keeps_everything_in_place(
    client: TestClient, signed_up: Callable[..., Signed], base: Base, store: ArtifactStore, tmp_path: Path
) -> None:
    owner, folder = signed_up("seller"), tiny_adapter(base.source, tmp_path)
    _, digest = send(client, owner, base, folder, 5)
    files, manifest = age(store, digest), store.path(digest)
    whole = manifest.read_bytes()
    manifest.chmod(0o600)
    try:
        manifest.write_bytes(whole[:-1])
        os.utime(manifest, (0, 0))
        assert remove_unused_artifacts(HOUR) == 0
        assert all(store.has(each) for each in files)
    finally:
        manifest.write_bytes(whole)
