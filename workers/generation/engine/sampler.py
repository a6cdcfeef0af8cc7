"""Logits → tokens, vectorised over the batch. A request's seed alone decides its noise, never its neighbours.

The draw is an inverse CDF over the filtered distribution with one uniform number per token, a hash of
(seed, choice, position): the same under any batch, after preemption and on any machine.
"""

from collections import Counter
from collections.abc import Sequence as Seq
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from workers.generation.engine.batch import Batch, Row, Sample
from workers.generation.engine.grammar import WORD
from workers.generation.engine.request import Sequence, TokenLogprob

CANDIDATES = 1024
COLDEST = 1e-5


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) that belongs to one position of one choice of one seed."""
    digest = blake2b(f"{seed}:{index}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


class Sampler:
    """Stateless: all it needs is in the sequences. `kernels`: the compiled ones serve the logits' device."""

    def __init__(self, kernels: bool = False) -> None:
        self._kernels = kernels

    @torch.inference_mode()
    def sample(self, logits: Tensor, batch: Batch) -> list[Sample]:
        """logits: `[sampled rows, vocabulary]` → one sample per row, in order."""
        rows = batch.sampled
        if not rows:
            return []
        plain = [at for at, row in enumerate(rows) if self._kernels and row.sequence.is_plain]
        if len(plain) == len(rows):
            return choose_plainly(logits, rows)
        if not plain:
            return choose_carefully(logits, rows)
        special = sorted(set(range(len(rows))) - set(plain))
        samples = dict(zip(plain, choose_plainly(logits[plain], [rows[at] for at in plain]), strict=True))
        own = choose_carefully(logits[special], [rows[at] for at in special])
        samples |= zip(special, own, strict=True)
        return [samples[at] for at in range(len(rows))]


def choose_plainly(logits: Tensor, rows: Seq[Row]) -> list[Sample]:
    """Temperature alone: one pass over each row where it lies."""
    from workers.generation.engine.cpu.choose import choose

    heat = [row.sequence.params.temperature for row in rows]
    cold = np.array([1 / max(each, COLDEST) if each > 0 else 0.0 for each in heat], dtype=np.float32)
    shares = np.array([share(row) for row in rows])
    return [Sample(token) for token in choose(logits.float().contiguous(), cold, shares)]


def choose_carefully(logits: Tensor, rows: Seq[Row]) -> list[Sample]:
    """Every parameter, in fp32."""
    sequences = [row.sequence for row in rows]
    logits = torch.nan_to_num(logits.float(), nan=-1e9, posinf=1e9, neginf=-1e9)
    shaped = constrain(logits, adjust(logits, sequences), sequences)
    tokens = shaped.argmax(-1)
    drawn = [at for at, sequence in enumerate(sequences) if sequence.params.temperature > 0]
    if drawn:
        tokens[drawn] = draw(shaped[drawn], [rows[at] for at in drawn])
    chosen = tokens.tolist()
    logprobs = report_logprobs(logits, sequences, chosen)
    return [Sample(token, logprobs.get(row)) for row, token in enumerate(chosen)]


def share(row: Row) -> float:
    """The uniform number of the token that is wanted; none is needed for the likeliest."""
    sequence = row.sequence
    if sequence.params.temperature <= 0:
        return 0.0
    return uniform(sequence.handle.seed, sequence.index, row.position)


def adjust(logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """Repetition (CTRL, arXiv 1909.05858), presence and frequency penalties, then logit_bias."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.is_adjusted]
    if not rows:
        return logits
    logits = logits.clone()
    for row in rows:
        sequence, params, own = sequences[row], sequences[row].params, logits[row]
        if params.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(sequence.tokens)), device=own.device)
            scores = own[seen]
            penalty = params.repetition_penalty
            own[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
        if (params.presence_penalty or params.frequency_penalty) and sequence.produced:
            counts = Counter(sequence.produced)
            ids = torch.tensor(list(counts), device=own.device)
            times = torch.tensor(list(counts.values()), dtype=own.dtype, device=own.device)
            own[ids] -= params.presence_penalty + params.frequency_penalty * times
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=own.device)
            own[ids] += torch.tensor(list(params.logit_bias.values()), dtype=own.dtype, device=own.device)
    return logits


def constrain(logits: Tensor, shaped: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """`shaped` with −inf for what a row's grammar does not allow next; rows without a grammar stay as they are.

    In place where it can be: a fresh tensor of a batch costs more than the masks. `logits` stay whole while
    log-probabilities are to be reported from them.
    """
    matchers = {row: sequence.matcher for row, sequence in enumerate(sequences) if sequence.matcher is not None}
    if not matchers:
        return shaped
    if shaped is logits and any(sequence.params.logprobs is not None for sequence in sequences):
        shaped = logits.clone()
    vocabulary = logits.shape[-1]
    # A model may have more rows in its vocabulary than its tokenizer has tokens: those are never allowed.
    words = max(-(-vocabulary // WORD), *(matcher.words for matcher in matchers.values()))
    bits = np.zeros((len(matchers), words), dtype=np.int32)
    for at, matcher in enumerate(matchers.values()):
        matcher.fill(bits[at, : matcher.words])
    np.invert(bits, out=bits)
    forbidden = np.unpackbits(bits.view(np.uint8), axis=1, count=vocabulary, bitorder="little")
    masks = torch.from_numpy(forbidden).view(torch.bool).to(logits.device)
    if len(matchers) == len(sequences):
        return shaped.masked_fill_(masks, -torch.inf)
    rows = torch.tensor(list(matchers), device=logits.device)
    shaped[rows] = shaped[rows].masked_fill_(masks, -torch.inf)
    return shaped


def draw(logits: Tensor, rows: Seq[Row]) -> Tensor:
    """Temperature, top_k, top_p, min_p, then one draw per row → token ids `[rows]`."""
    params = [row.sequence.params for row in rows]
    temperature = torch.tensor([p.temperature for p in params], device=logits.device).clamp_min(COLDEST)
    probabilities = (logits / temperature[:, None]).softmax(-1)
    for row, p in enumerate(params):
        if p.min_p > 0:
            own = probabilities[row]
            own[own < p.min_p * own.max()] = 0
        if p.top_p < 1 or p.top_k > 0:
            probabilities[row] = keep_top(probabilities[row], p.top_p, p.top_k)
    numbers = [share(row) for row in rows]
    cumulative = probabilities.double().cumsum(-1)
    targets = torch.tensor(numbers, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


def keep_top(probabilities: Tensor, top_p: float, top_k: int) -> Tensor:
    """The `top_k` likeliest, of those the fewest that reach `top_p`; all else 0. `[vocabulary]` each."""
    total = probabilities.sum()
    size = probabilities.numel()
    wanted = min(top_k or size, size)
    values, ids = probabilities.topk(min(wanted, CANDIDATES, size))
    if values.numel() < wanted and (top_p >= 1 or values.sum() < top_p * total):
        values, ids = probabilities.topk(wanted)  # a flat distribution: the candidates were too few
    before = values.cumsum(-1) - values
    kept = before < top_p * (values.sum() if top_k else total)
    kept[0] = True
    return torch.zeros_like(probabilities).scatter_(0, ids[kept], values[kept])


def report_logprobs(logits: Tensor, sequences: Seq[Sequence], chosen: Seq[int]) -> dict[int, TokenLogprob]:
    """For the rows that asked: the chosen token's log-probability and the likeliest alternatives."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
    if not rows:
        return {}
    logprobs = logits[rows].log_softmax(-1)
    most = max(sequences[row].params.logprobs or 0 for row in rows)
    values, ids = logprobs.topk(max(most, 1))
    own = logprobs[torch.arange(len(rows)), torch.tensor([chosen[row] for row in rows])].tolist()
    result = {}
    for at, row in enumerate(rows):
        top = zip(ids[at].tolist(), values[at].tolist(), strict=True)
        result[row] = TokenLogprob(chosen[row], own[at], tuple(top)[: sequences[row].params.logprobs or 0])
    return result
