"""Sequences end to end in one row, no padding in any linear; attention alone lays them side by side.

There the sequences are padded on the right to the longest of the pack: causal attention never looks right, so
no mask is needed and the padding changes nothing. Only a forked sequence (two answers after one prompt) needs one:
the second answer must not see the first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from workers.fine_tuning.recipes.rows import Row

NAME = "gptstore_packed"
# Up to this many tokens, scores are kept as a whole matrix.
SHORT = 128


@dataclass(frozen=True)
class Pack:
    """`ids`, `positions`: [1, tokens]. `labels`: the next token where it is a target; `targets`: those places.

    `answers`: whose each target is, twice the sequence's number, one more for a second answer.
    `shape`: (sequences, longest). `spread[i]`: the pack's row for place i of the padded layout; `places`: back again.
    `visible`: [sequences, longest, longest], which keys a query sees; None where all earlier ones.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    labels: Tensor
    answers: Tensor
    shape: tuple[int, int]
    spread: Tensor
    places: Tensor
    visible: Tensor | None


def pack(rows: Sequence[Row], device: torch.device) -> Pack:
    ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    labels: list[int] = []
    answers: list[int] = []
    places: list[int] = []
    longest = max(len(row.ids) for row in rows)
    spread = torch.zeros(len(rows) * longest, dtype=torch.long)
    for number, row in enumerate(rows):
        begin, length = len(ids), len(row.ids)
        spread[number * longest : number * longest + length] = torch.arange(begin, begin + length)
        places += range(number * longest, number * longest + length)
        prompt, second = (row.fork[0], sum(row.fork)) if row.fork else (0, length)
        wanted = [at for at in range(1, length) if row.mask[at]]
        targets += [begin + (prompt if at == second else at) - 1 for at in wanted]
        labels += [row.ids[at] for at in wanted]
        answers += [2 * number + (at >= second) for at in wanted]
        ids += row.ids
        positions += [*range(second), *range(prompt, prompt + length - second)]

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return Pack(
        tensor(ids)[None],
        tensor(positions)[None],
        tensor(targets),
        tensor(labels),
        tensor(answers),
        (len(rows), longest),
        spread.to(device),
        tensor(places),
        forks(rows, longest, device),
    )


def forks(rows: Sequence[Row], longest: int, device: torch.device) -> Tensor | None:
    """What a query sees where second answers do not see first ones."""
    if all(row.fork is None for row in rows):
        return None
    seen = visible(longest, None, device).repeat(len(rows), 1, 1)
    for number, row in enumerate(rows):
        if row.fork:
            prompt, second = row.fork[0], sum(row.fork)
            seen[number, second : len(row.ids), prompt:second] = False
    return seen


class Spread(Function):
    """Packed rows → padded layout. Padding repeats row 0 and gives no gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, spread: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return rows.index_select(0, spread)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(0, places), None, None


class Gather(Function):
    """Padded layout → packed rows."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = padded.shape[0]
        return padded.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        padded = gradients[0].new_zeros((ctx.size, *gradients[0].shape[1:]))
        return padded.index_copy_(0, places, gradients[0]), None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    pack: Pack,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """query: [1, heads, tokens, head_dim] → [1, tokens, heads, head_dim]."""
    sequences, longest = pack.shape

    def side_by_side(packed: Tensor) -> Tensor:
        rows = packed[0].transpose(0, 1)
        if sequences > 1:
            rows = Spread.apply(rows, pack.spread, pack.places)
        return rows.view(sequences, longest, *rows.shape[1:]).transpose(1, 2)

    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    seen = pack.visible
    if sliding_window is not None and longest > sliding_window:
        if seen is None:
            seen = visible(longest, sliding_window, query.device)[None]
        else:
            seen = seen & within(pack, sliding_window)
    attend = attend_short if longest <= SHORT else attend_long
    output = attend(side_by_side(query), side_by_side(key), side_by_side(value), scale, seen)
    rows = output.transpose(1, 2).reshape(sequences * longest, *query.shape[1:2], value.shape[-1])
    if sequences > 1:
        rows = Gather.apply(rows, pack.places)
    return rows.unsqueeze(0), None


def within(pack: Pack, window: int) -> Tensor:
    """[sequences, longest, longest]: whose position is less than `window` before one's own; in a forked sequence that
    is another matter than its place.
    """
    sequences, longest = pack.shape
    positions = pack.positions.new_zeros(sequences * longest)
    positions[pack.places] = pack.positions[0]
    at = positions.view(sequences, longest)
    return at[:, :, None] - at[:, None, :] < window


def attend_short(query: Tensor, key: Tensor, value: Tensor, scale: float, seen: Tensor | None) -> Tensor:
    """Plain products, the query heads of a key head as rows of one matrix: [batch, heads, tokens, head_dim].

    On a CPU the fused kernel takes several times as long for sequences of some dozen tokens.
    """
    batch, heads, tokens, width = query.shape
    kv_heads = key.shape[1]
    q = query.reshape(batch * kv_heads, heads // kv_heads * tokens, width)
    k, v = key.reshape(batch * kv_heads, tokens, width), value.reshape(batch * kv_heads, tokens, -1)
    seen = visible(tokens, None, q.device)[None] if seen is None else seen
    bias = torch.zeros(seen.shape, device=q.device).masked_fill_(~seen, -math.inf).repeat(1, heads // kv_heads, 1)
    if len(bias) > 1:
        bias = bias.repeat_interleave(kv_heads, 0)
    return ShortAttention.apply(q, k, v, bias, scale).view(batch, heads, tokens, -1)


class ShortAttention(Function):
    """softmax(scale · q kᵀ + bias) v. q: [batch, queries, width], k and v: [batch, tokens, width].

    Scores are fp32, as in the fused kernel: in bf16 they would move the loss. They are made again on the way back, so
    nothing as large as them is kept.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        ctx.scale = scale
        return torch.bmm(weights_of(q, k, bias, scale).to(v.dtype), v)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, bias = ctx.saved_tensors
        slope = gradients[0].to(v.dtype)
        weights = weights_of(q, k, bias, ctx.scale)
        v_slope = torch.bmm(weights.to(v.dtype).transpose(1, 2), slope)
        scores = torch.bmm(slope.float(), v.float().transpose(1, 2)).mul_(weights)
        scores.addcmul_(weights, scores.sum(-1, keepdim=True), value=-1).mul_(ctx.scale)
        q_slope, k_slope = torch.bmm(scores, k.float()), torch.bmm(scores.transpose(1, 2), q.float())
        return q_slope.to(q.dtype), k_slope.to(k.dtype), v_slope, None, None


def weights_of(q: Tensor, k: Tensor, bias: Tensor, scale: float) -> Tensor:
    """[batch, queries, tokens], fp32."""
    return torch.baddbmm(bias, q.float(), k.float().transpose(1, 2), alpha=scale).softmax(-1)


def attend_long(query: Tensor, key: Tensor, value: Tensor, scale: float, seen: Tensor | None) -> Tensor:
    """The fused kernel: its memory does not grow with the square of the length."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    mask = None if seen is None else seen[:, None]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale)


def visible(tokens: int, window: int | None, device: torch.device) -> Tensor:
    """[tokens, tokens]: which keys a query sees."""
    at = torch.arange(tokens, device=device)
    distance = at[:, None] - at[None, :]
    return (distance >= 0) & (distance < (window or tokens))


AttentionInterface.register(NAME, packed_attention)
