"""Bases come in by the real import, or are refused with the reason."""

import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy.orm import Session

from app.settings import get_settings
from app.variants.bases import find_base, start_import
from models_registry.prompt import Message, Renderer
from models_registry.store import open_store
from tests.conftest import Base, Services
from tests.generation.tiny import new_model
from workers.model_import.task import run_import


def test_an_imported_base_knows_its_shape(tx: Session, base: Base) -> None:
    row = find_base(tx, base.id)
    assert row.architecture == "LlamaForCausalLM"
    assert row.context_length == 512
    assert row.shape["linears"]["model.layers.1.mlp.down_proj"] == [64, 96]
    assert "lm_head" not in row.shape["linears"]


def test_an_imported_base_can_render(services: Services, base: Base) -> None:
    folder = open_store(services.environment["GPTSTORE_ARTIFACTS_URL"]).folder(base.digest)
    assert Renderer.load(folder).chat([Message("user", "hi")])


def refused(services: Services, base_id: str, source: str) -> str:
    from app.database import transaction

    with transaction() as tx:
        start_import(tx, base_id, source)
    run_import(base_id, source)
    with transaction() as tx:
        row = find_base(tx, base_id)
        assert row.status == "failed"
        return row.status_details or ""


def test_a_foreign_architecture_is_refused_by_name(services: Services, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}))
    assert "MambaForCausalLM" in refused(services, "mamba", str(tmp_path))


def test_pickled_weights_are_refused(services: Services, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "pickled" in refused(services, "pickled", str(tmp_path))


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_another_family_comes_in_with_its_linears(services: Services, base: Base, tmp_path: Path, family: str) -> None:
    from app.database import transaction

    shutil.copytree(base.source, tmp_path, dirs_exist_ok=True)
    model = new_model(family)
    model.resize_token_embeddings(384)
    model.save_pretrained(tmp_path)
    with transaction() as tx:
        start_import(tx, f"tiny-{family}-import", str(tmp_path))
    run_import(f"tiny-{family}-import", str(tmp_path))
    with transaction() as tx:
        row = find_base(tx, f"tiny-{family}-import")
        assert (row.status, row.architecture) == ("ready", type(model).__name__), row.status_details
        assert len(row.shape["linears"]) == 3 * (4 if family == "gpt2" else 7)


def test_a_full_disk_fails_the_import_and_says_so(
    services: Services, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTSTORE_API__MIN_FREE_DISK_BYTES", str(2**60))
    get_settings.cache_clear()
    try:
        assert "disk is nearly full" in refused(services, "no-room", str(base.source))
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()
    assert not list(Path(urlsplit(services.environment["GPTSTORE_ARTIFACTS_URL"]).path, "tmp").iterdir())


def test_a_missing_wheel_is_refused(services: Services) -> None:
    assert "not installed" in refused(services, "nowhere", "wheel:no-such-wheel")
