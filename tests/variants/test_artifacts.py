"""An adapter trained elsewhere: taken in when it fits, refused with its reason when it does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx2 import Response
from safetensors.numpy import load_file, save_file
from starlette.testclient import TestClient

from tests.conftest import Base, Signed
from tests.tiny_base import tiny_adapter


@pytest.fixture(scope="module")
def adapter(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_adapter(base.source, tmp_path_factory.mktemp("adapter"))


Send = Callable[..., Response]


@pytest.fixture
def send(client: TestClient, signed_up: Callable[..., Signed], base: Base, adapter: Path) -> Send:
    seller = signed_up("seller")

    def post(weights: bytes | None = None, config: bytes | None = None, **changes: str) -> Response:
        weights = (adapter / "adapter_model.safetensors").read_bytes() if weights is None else weights
        config = (adapter / "adapter_config.json").read_bytes() if config is None else config
        return client.post(
            "/v1/artifacts",
            headers=seller.headers,
            data={"base_model": base.id, "suffix": "mine"} | changes,
            files={
                "adapter_model.safetensors": ("adapter_model.safetensors", weights),
                "adapter_config.json": ("adapter_config.json", config),
            },
        )

    return post


def test_a_plain_peft_adapter_becomes_a_model_of_its_owner(send: Send, base: Base) -> None:
    answer = send()
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert body["model"].startswith(f"ft:{base.id}:seller-")
    assert body["rank"] == 4
    assert body["parameters"] > 0


def test_the_same_adapter_sent_twice_is_stored_once(send: Send) -> None:
    first, second = send().json(), send().json()
    assert first["digest"] == second["digest"]
    assert first["model"] != second["model"]


def changed_config(adapter: Path, **changes: object) -> bytes:
    return json.dumps(json.loads((adapter / "adapter_config.json").read_text()) | changes).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 8},
        {"r": 65},
        {"r": True},
        {"use_dora": True},
        {"target_modules": ".*"},
        {"modules_to_save": ["lm_head"]},
        {"auto_mapping": {"parent_library": "os"}},
        {"base_model_name_or_path": "https://example.com/x"},
        {"peft_type": "IA3"},
        {"lora_alpha": -1},
    ],
)
def test_a_config_that_asks_for_more_is_refused(send: Send, adapter: Path, changes: dict[str, object]) -> None:
    answer = send(config=changed_config(adapter, **changes))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_adapter_config")


def test_nan_weights_are_refused(send: Send, adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    assert send((tmp_path / "nan.safetensors").read_bytes()).json()["error"]["code"] == "non_finite_weights"


def test_what_is_no_safetensors_is_refused(send: Send, adapter: Path) -> None:
    whole = (adapter / "adapter_model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"][1] += 4
    moved = json.dumps(header).encode()
    cases = [
        b"",
        b"short",
        whole[:-1],
        whole + b"\0",
        (2**40).to_bytes(8, "little") + whole[8:],
        len(moved).to_bytes(8, "little") + moved + whole[8 + length :],
    ]
    for case in cases:
        assert send(case).json()["error"]["code"] == "invalid_safetensors"
    assert send(b"\x80\x04\x95" + whole).json()["error"]["code"] == "unsafe_format"


@pytest.mark.parametrize("body", [{}, {"data": {"base_model": "tiny-llama"}}, {"files": {"base_model": (None, "x")}}])
def test_without_files_the_answer_names_what_is_missing(
    client: TestClient, signed_up: Callable[..., Signed], body: dict[str, Any]
) -> None:
    answer = client.post("/v1/artifacts", headers=signed_up("seller").headers, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "missing_required_parameter")
    assert error["param"] in ("adapter_model.safetensors", "adapter_config.json")
    assert error["param"] in error["message"]


def test_an_unknown_base_is_not_found(send: Send) -> None:
    assert send(base_model="no-such-base").json()["error"]["code"] == "model_not_found"
