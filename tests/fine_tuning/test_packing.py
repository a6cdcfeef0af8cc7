"""Packed sequences attend as they would alone, short or long, with grouped heads and a window."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from workers.fine_tuning.recipes import packing
from workers.fine_tuning.recipes.rows import Row

LENGTHS = (5, 17, 1)
HEADS, KV_HEADS, WIDTH = 6, 2, 8


def packed(heads: int, tokens: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, tokens, WIDTH, generator=generator).requires_grad_()


def attend(inputs: list[Tensor], lengths: tuple[int, ...], window: int | None) -> Tensor:
    pack = packing.pack([Row([0] * length, [True] * length) for length in lengths], torch.device("cpu"))
    query, key, value = inputs
    return packing.packed_attention(nn.Identity(), query, key, value, None, pack=pack, sliding_window=window)[0]


def alone(inputs: list[Tensor], lengths: tuple[int, ...], window: int | None) -> Tensor:
    outputs, begin = [], 0
    for length in lengths:
        query, key, value = (each[:, :, begin : begin + length] for each in inputs)
        at = torch.arange(length)
        distance = at[:, None] - at[None, :]
        mask = (distance >= 0) & (distance < (window or length))
        output = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        outputs.append(output.transpose(1, 2))
        begin += length
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS[1:2]])
def test_a_packed_sequence_attends_only_to_itself(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], short: bool, window: int | None
) -> None:
    monkeypatch.setattr(packing, "SHORT", 128 if short else 0)
    tokens = sum(lengths)
    inputs = [packed(HEADS, tokens, 1), packed(KV_HEADS, tokens, 2), packed(KV_HEADS, tokens, 3)]
    found, wanted = attend(inputs, lengths, window), alone(inputs, lengths, window)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    slope = packed(HEADS, tokens, 4).detach().transpose(1, 2)
    gradients: list[Any] = [torch.autograd.grad(output, inputs, slope) for output in (found, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("short", [True, False])
def test_a_second_answer_looks_back_as_far_as_if_it_followed_the_prompt_itself(
    monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    monkeypatch.setattr(packing, "SHORT", 128 if short else 0)
    prompt, first, second = 6, 5, 7
    tokens = prompt + first + second
    row = Row([0] * tokens, [True] * tokens, fork=(prompt, first))
    inputs = [packed(HEADS, tokens, 1), packed(KV_HEADS, tokens, 2), packed(KV_HEADS, tokens, 3)]
    pack = packing.pack([row], torch.device("cpu"))
    query, key, value = inputs
    found = packing.packed_attention(nn.Identity(), query, key, value, None, pack=pack, sliding_window=4)[0]
    own = [torch.cat([each[:, :, :prompt], each[:, :, prompt + first :]], 2) for each in inputs]
    wanted = alone(own, (prompt + second,), 4)
    torch.testing.assert_close(found[:, prompt + first :], wanted[:, prompt:], atol=1e-5, rtol=1e-5)
