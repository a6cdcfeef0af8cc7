"""One engine over the tiny random model for all tests of grammars."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from models_registry.prompt import Renderer
from tests.generation.constrained import start
from tests.tiny_base import tiny_base
from workers.generation.engine.engine import TorchEngine


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("constrained"))


@pytest.fixture(scope="package")
def renderer(folder: Path) -> Renderer:
    return Renderer.load(folder)


@pytest.fixture(scope="package")
def engine(folder: Path) -> Iterator[TorchEngine]:
    engine = start(folder)
    yield engine
    engine.close()
