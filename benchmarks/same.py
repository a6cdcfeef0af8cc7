"""Is every answer the right one, and the same in any company? SmolLM2, 16 adapters; works `flips` and `equal`."""

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from app.inference.wire_events import SamplingParams
from benchmarks.ours import OurEngine
from benchmarks.protocol import NEW_TOKENS, Line, Prompts, Setup
from workers.generation.engine.engine import EngineOptions
from workers.generation.engine.request import EngineRequest, StepEvent

ROUNDS = {"bf16": 24, "fp32": 2}
EQUAL_PROMPTS, EQUAL_TOKENS = 200, 16
ROOMY = EngineOptions()
SQUEEZED = EngineOptions(kv_cache_tokens=4096, max_batch_tokens=96, max_batch=24)

Job = tuple[int, list[int], str | None]


def flips(setup: Setup, prompts: Prompts, given: argparse.Namespace) -> Iterator[Line]:
    """Sampled with a seed: tokens that differ from the answer alone, per 100,000; company, order, chunks, preemption
    and cache hits change from round to round."""
    for dtype, rounds in ROUNDS.items():
        differing = compared = 0
        roomy, squeezed = (OurEngine(setup, replace(sizes, dtype=dtype)) for sizes in (ROOMY, SQUEEZED))
        jobs: list[Job] = [
            (at, ids, None if at % 17 == 16 else roomy.adapters[at % 17]) for at, ids in enumerate(prompts.mixed)
        ]
        alone = [answers(roomy, [job], NEW_TOKENS, temperature=1.0)[0] for job in jobs]
        for number in range(rounds):
            some = random.Random(number).sample(jobs, len(jobs) - 3 * (number % 16))  # noqa: S311 (no secret)
            engine = squeezed if number % 4 == 3 else roomy
            for (at, _, _), answer in zip(some, answers(engine, some, NEW_TOKENS, temperature=1.0), strict=True):
                differing += sum(mine != other for mine, other in zip(alone[at], answer, strict=True))
                compared += len(answer)
        yield Line("gptstore", f"flips {dtype}", 1e5 * differing / compared, unit="per 100,000", streams=compared)
        roomy.close()
        squeezed.close()


def equal(setup: Setup, prompts: Prompts, given: argparse.Namespace) -> Iterator[Line]:
    """Greedy tokens in fp32 that differ from transformers' and PEFT's, of 200 prompts, in a batch, squeezed, cached."""
    text = [token for prompt in prompts.mixed for token in prompt]
    cuts = [text[at * 60 : at * 60 + 20 + at % 100] for at in range(EQUAL_PROMPTS)]
    jobs: list[Job] = [(at, ids, None if at % 17 == 16 else str(at % 17)) for at, ids in enumerate(cuts)]
    expected = references(setup, jobs)
    for work, sizes in (("batch", ROOMY), ("squeezed", SQUEEZED)):
        engine = OurEngine(setup, replace(sizes, dtype="fp32"))
        for kind in (work, f"{work}, cached"):
            got = answers(engine, jobs, EQUAL_TOKENS, temperature=0.0)
            wrong = sum(mine != right for mine, right in zip(got, expected, strict=True))
            yield Line("gptstore", f"unequal answers, {kind}", wrong, unit="of 200", streams=EQUAL_PROMPTS)
        got = [answers(engine, [job], EQUAL_TOKENS, temperature=0.0)[0] for job in jobs]
        wrong = sum(mine != right for mine, right in zip(got, expected, strict=True))
        yield Line("gptstore", f"unequal answers, {work}, one by one", wrong, unit="of 200")
        engine.close()


def answers(engine: OurEngine, jobs: Sequence[Job], new: int, *, temperature: float) -> list[list[int]]:
    """Tokens of each job, all sent at once; the seed is the job's number."""
    told: list[list[int]] = [[] for _ in jobs]
    handles = []
    for place, (at, ids, adapter) in enumerate(jobs):

        def keep(event: StepEvent, own: list[int] = told[place]) -> None:
            own += event.ids

        params = SamplingParams(max_tokens=new, temperature=temperature, seed=at, ignore_eos=True)
        handles.append(engine.engine.submit(EngineRequest(tuple(ids), params, adapter, "one"), keep))
    for handle in handles:
        handle.wait()
        if handle.error is not None:
            raise handle.error
    return told


def references(setup: Setup, jobs: Sequence[Job]) -> list[list[int]]:
    base = AutoModelForCausalLM.from_pretrained(setup.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, setup.adapters[0], adapter_name="0")
    for number, folder in enumerate(setup.adapters[1:], 1):
        model.load_adapter(folder, adapter_name=str(number))
    model.eval()
    found = []
    for _, ids, adapter in jobs:
        asked = torch.tensor([ids])
        options = {
            "attention_mask": torch.ones_like(asked),
            "max_new_tokens": EQUAL_TOKENS,
            "min_new_tokens": EQUAL_TOKENS,
            "do_sample": False,
            "eos_token_id": None,
            "pad_token_id": 0,
        }
        if adapter is None:
            with model.disable_adapter():
                answer = model.generate(input_ids=asked, **options)
        else:
            model.set_adapter(adapter)
            answer = model.generate(input_ids=asked, **options)
        found.append([int(token) for token in answer[0, len(ids) :]])
    return found
