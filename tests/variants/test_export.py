"""What an owner downloads loads elsewhere: in PEFT on the base, or merged as a model of its own."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from starlette.testclient import TestClient
from transformers import AutoModelForCausalLM

from app.database import transaction
from app.settings import get_settings
from app.variants.variants import find_variant
from tests.conftest import Base, Signed
from tests.tiny_base import tiny_adapter
from workers.fine_tuning.merge import Merges, merge_variant

SignUp = Callable[..., Signed]
IDS = torch.tensor([[5, 60, 200, 7, 31]])


def uploaded(client: TestClient, user: Signed, base: Base, folder: Path) -> str:
    names = ("adapter_model.safetensors", "adapter_config.json")
    files = {name: (name, (folder / name).read_bytes()) for name in names}
    answer = client.post("/v1/artifacts", data={"base_model": base.id}, files=files, headers=user.headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["model"])


def download(client: TestClient, user: Signed, model: str, **params: str) -> Any:
    return client.get(f"/v1/artifacts/{model}/content", params=params, headers=user.headers)


def unpacked(content: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    return folder


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(IDS).logits
    return found


def test_an_adapter_loads_in_peft_and_merged_is_the_same_model(
    client: TestClient, signed_up: SignUp, base: Base, tmp_path: Path
) -> None:
    user = signed_up()
    trained = tiny_adapter(base.source, tmp_path / "trained", seed=3)
    expected = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.source), trained))
    model = uploaded(client, user, base, trained)

    plain = download(client, user, model)
    assert plain.headers["content-type"] == "application/zip"
    assert plain.content == download(client, user, model).content
    folder = unpacked(plain.content, tmp_path / "plain")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.source), folder)
    torch.testing.assert_close(logits(found), expected)
    assert not torch.allclose(logits(AutoModelForCausalLM.from_pretrained(base.source)), expected, atol=1e-3)

    waiting = download(client, user, model, format="merged")
    assert (waiting.status_code, waiting.json()["status"]) == (202, "preparing")
    with transaction() as tx:
        variant_id = find_variant(tx, user.account_id, model).id
    merge_variant(variant_id)
    merged = unpacked(download(client, user, model, format="merged").content, tmp_path / "merged")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in merged.iterdir()}
    alone = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    torch.testing.assert_close(logits(alone), expected, atol=0.05, rtol=0.05)
    assert download(client, signed_up(), model).json()["error"]["code"] == "model_not_found"


def test_a_merge_without_room_on_the_disk_says_so(
    client: TestClient, signed_up: SignUp, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = signed_up()
    model = uploaded(client, user, base, tiny_adapter(base.source, tmp_path / "trained", seed=5))
    assert download(client, user, model, format="merged").status_code == 202
    with transaction() as tx:
        variant_id = find_variant(tx, user.account_id, model).id
    monkeypatch.setenv("GPTSTORE_API__MIN_FREE_DISK_BYTES", str(2**60))
    get_settings.cache_clear()
    try:
        merge_variant(variant_id)
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()
    error = download(client, user, model, format="merged").json()["error"]
    assert (error["code"], "disk is nearly full" in error["message"]) == ("export_failed", True)


def test_a_merge_begins_when_the_one_before_has_ended() -> None:
    seen: list[str] = []

    def merge(variant_id: str) -> None:
        seen.append(f"{variant_id} begins")
        if variant_id == "first":
            merges.wake("second")
        seen.append(f"{variant_id} ends")

    merges = Merges(merge)
    merges.wake("first")
    assert seen == ["first begins", "first ends", "second begins", "second ends"]
