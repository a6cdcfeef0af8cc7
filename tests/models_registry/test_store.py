"""Artifacts keep their bytes, whole or not at all."""

from pathlib import Path

import pytest

from models_registry.errors import IntegrityError, StorageFull, TooLarge, UnknownArtifact
from models_registry.store import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_folder_comes_back_under_its_names(store: LocalStore, folder: Path) -> None:
    manifest = store.put_folder(folder, "base", {"family": "llama"})
    again = store.manifest(manifest.digest)
    assert again == manifest
    assert (store.folder(manifest.digest) / "model.safetensors").read_bytes() == b"weights"
    assert store.put_folder(folder, "base", {"family": "llama"}).digest == manifest.digest


def test_a_changed_file_is_noticed_on_open(store: LocalStore, folder: Path) -> None:
    manifest = store.put_folder(folder, "base", {})
    path = store.path(manifest.files["model.safetensors"].digest)
    path.write_bytes(b"weightz")
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        store.folder(manifest.digest)


def test_what_nobody_needs_goes_with_its_folder_unless_it_was_just_put(store: LocalStore, folder: Path) -> None:
    manifest = store.put_folder(folder, "base", {})
    unfolded = store.folder(manifest.digest)
    assert not store.remove(manifest.digest, 60)
    assert store.manifest(manifest.digest) == manifest
    assert store.remove(manifest.digest, -60)
    assert not unfolded.exists()
    assert not store.remove(manifest.digest, -60)
    assert store.put_folder(folder, "base", {}).digest == manifest.digest
    assert (store.folder(manifest.digest) / "config.json").read_text() == "{}"
    assert not list((store.root / "tmp").iterdir())


def test_too_many_bytes_leave_nothing_behind(store: LocalStore) -> None:
    with pytest.raises(TooLarge):
        store.put([b"x" * 10, b"y" * 10], max_bytes=15)
    assert not [path for path in store.root.rglob("*") if path.is_file()]


def test_a_nearly_full_disk_refuses_and_leaves_nothing_behind(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, min_free_bytes=2**60)
    with pytest.raises(StorageFull):
        store.put([b"x"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("digest", ["../../etc/passwd", "0" * 64, "A" * 64, ""])
def test_a_name_that_is_no_stored_digest_is_unknown(store: LocalStore, digest: str) -> None:
    with pytest.raises(UnknownArtifact):
        store.path(digest)
