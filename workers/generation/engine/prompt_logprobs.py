"""Log-probabilities of the prompt's own tokens, told chunk by chunk as prefill goes; nothing is kept."""

import torch
from torch import Tensor

from workers.generation.engine.batch import Batch, Chunk
from workers.generation.engine.request import Sequence, StepEvent, TokenLogprob

ROWS = 128  # distributions in memory at once


def score_prompts(logits: Tensor, batch: Batch) -> Tensor:
    """logits: `[rows, vocabulary]`, every row of the chunks that score, those of the others that are sampled from.

    Puts the scores into the batch's news; returns `[sampled rows, vocabulary]`.
    """
    if not any(chunk.scores for chunk in batch.chunks):
        return logits
    kept, row = list[int](), 0
    for chunk in batch.chunks:
        sampled = chunk.row_count
        rows = chunk.length if chunk.scores else sampled
        if chunk.scores:
            score(logits[row : row + rows], chunk, batch)
        row += rows
        kept += range(row - sampled, row)
    return logits[kept]


def score(logits: Tensor, chunk: Chunk, batch: Batch) -> None:
    """Row i stands at position `start + i` and foretells the token after it. Recomputed rows are not told again."""
    sequence = chunk.sequence
    begin = max(sequence.scored, chunk.start + 1)
    end = min(chunk.start + chunk.length + 1, sequence.prompt_length)
    for first in range(begin, end, ROWS):
        last = min(first + ROWS, end)
        own = logits[first - 1 - chunk.start : last - 1 - chunk.start]
        news = tuple(token_logprobs(own, sequence.tokens[first:last], sequence))
        batch.news.append((sequence.handle, StepEvent(sequence.index, prompt_logprobs=news)))
    sequence.scored = max(sequence.scored, end)


@torch.inference_mode()
def token_logprobs(logits: Tensor, tokens: list[int], sequence: Sequence) -> list[TokenLogprob]:
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(sequence.params.prompt_logprobs or 0)
    tops = (tuple(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True))
    return [TokenLogprob(*each) for each in zip(tokens, own, tops, strict=True)]
