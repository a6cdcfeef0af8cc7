"""Log-probabilities only where a label counts: the output head never sees the other tokens."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear

CHUNK = 512


class TargetLogprobs(Function):
    """Of `labels` after `hidden` [targets, width], and how many were the likeliest token.

    The gradient for `hidden` is made on the way forward, row by row, so logits of `CHUNK` targets exist at a time and
    there is no second pass over them. Where the head itself learns, its chances are kept for the way back.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None) -> tuple[Tensor, ...]:
        logprobs = torch.empty(len(labels), device=hidden.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        kept = []
        for begin in range(0, len(labels), CHUNK):
            part = slice(begin, begin + CHUNK)
            wanted = labels[part]
            logits = linear(hidden[part], weight).float()
            if softcap:
                logits = torch.tanh(logits / softcap) * softcap
            correct += (logits.argmax(-1) == wanted).sum()
            rows = torch.arange(len(wanted), device=hidden.device)
            total = logits.logsumexp(-1)
            logprobs[part] = logits[rows, wanted] - total
            if gradient is not None:
                slope = 1 - (logits / softcap).square() if softcap else None
                chances = logits.sub_(total[:, None]).exp_()
                chances[rows, wanted] -= 1
                if slope is not None:
                    chances *= slope
                slopes = chances.to(hidden.dtype)
                torch.mm(slopes, weight, out=gradient[part])
                if ctx.needs_input_grad[1]:
                    kept.append(slopes)
        ctx.save_for_backward(gradient, hidden if kept else None, *kept)
        ctx.mark_non_differentiable(correct)
        return logprobs, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        gradient, hidden, *kept = ctx.saved_tensors
        factors = -gradients[0].to(gradient.dtype)[:, None]
        head = None
        for number, slopes in enumerate(kept):
            part = slice(number * CHUNK, number * CHUNK + len(slopes))
            piece = (slopes.t() @ (hidden[part] * factors[part])).float()
            head = piece if head is None else head.add_(piece)
        return gradient * factors, None if head is None else head.to(gradient.dtype), None, None
