"""Cross-entropy only where a label counts: the output head never sees the other tokens."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear

CHUNK = 512


class HeadLoss(Function):
    """Sum of the losses of `hidden` [targets, width] against `labels`; the gradient is made on the way forward.

    So logits of `CHUNK` targets exist at a time, and there is no second pass over them.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None) -> tuple[Tensor, ...]:
        loss = torch.zeros((), device=hidden.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for begin in range(0, len(labels), CHUNK):
            part = slice(begin, begin + CHUNK)
            wanted = labels[part]
            logits = linear(hidden[part], weight).float()
            if softcap:
                logits = torch.tanh(logits / softcap) * softcap
            correct += (logits.argmax(-1) == wanted).sum()
            rows = torch.arange(len(wanted), device=hidden.device)
            chosen = logits[rows, wanted]
            total = logits.logsumexp(-1)
            loss += (total - chosen).sum()
            if gradient is not None:
                slope = 1 - (logits / softcap).square() if softcap else None
                chances = logits.sub_(total[:, None]).exp_()
                chances[rows, wanted] -= 1
                if slope is not None:
                    chances *= slope
                torch.mm(chances.to(hidden.dtype), weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None, None
