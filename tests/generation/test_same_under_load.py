"""A token does not depend on its company: in bf16 too, to the last bit, alone, in a batch, cut into chunks, preempted,
or with its prompt found in the cache."""

from pathlib import Path

import pytest
import torch

from tests.generation.tiny import Answer, ask, prompts, start_engine
from workers.generation.engine import cpu
from workers.generation.engine.engine import TorchEngine


def told(answer: Answer) -> list[object]:
    """Tokens with the exact log-probabilities of the likeliest ones."""
    return [each for event in answer.wait().events for each in zip(event.ids, event.logprobs, strict=True)]


@pytest.mark.parametrize(("dtype", "quantization"), [("bf16", "none"), ("fp32", "none"), ("auto", "int8")])
def test_log_probabilities_are_the_same_bits_alone_in_a_batch_in_chunks_and_from_the_cache(
    family: Path, dtype: str, quantization: str
) -> None:
    if not cpu.AVAILABLE or (dtype == "bf16" and not cpu.multiplies(torch.bfloat16)):
        pytest.skip("torch's own operations serve here")
    numbers = {"dtype": dtype, "quantization": quantization}
    jobs = [(ids, None if i % 5 == 4 else f"a{i % 5}") for i, ids in enumerate(prompts(16))]

    def start(engine: TorchEngine, job: tuple[list[int], str | None]) -> Answer:
        return ask(engine, *job, seed=5, temperature=1, logprobs=3)

    roomy = start_engine(family, **numbers, max_batch_tokens=512)
    alone = [told(start(roomy, job)) for job in jobs]
    again = [start(roomy, job) for job in jobs]
    cached = [told(answer) for answer in again]
    assert all(answer.handle.cached_tokens > 0 for answer in again[-5:])
    roomy.close()
    cramped = start_engine(family, **numbers, kv_cache_tokens=256, max_batch_tokens=16, max_batch=16)
    together = [start(cramped, job) for job in jobs]
    crowded = [told(answer) for answer in together]
    assert cramped.stats().preemptions > 0
    cramped.close()
    assert cached == alone
    assert crowded == alone
