"""Tiny models, built once; engines over them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.generation.tiny import FAMILIES, save_family, start_engine
from workers.generation.engine.engine import TorchEngine


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def engine(llama: Path) -> Iterator[TorchEngine]:
    engine = start_engine(llama)
    yield engine
    engine.close()
