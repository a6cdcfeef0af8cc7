"""Between the engine protocol's words and vLLM's, for one choice of a request."""

from collections.abc import Mapping
from hashlib import blake2b

from vllm.exceptions import VLLMValidationError
from vllm.logprobs import Logprob
from vllm.sampling_params import RequestOutputKind, SamplingParams

from workers.generation.engine.request import Sequence, TokenLogprob


def sampling_params(sequence: Sequence) -> SamplingParams:
    """vLLM decides tokens only: text, stop strings and billing stay with `Sequence`, as in the built-in engine.

    Raises ValueError for what vLLM does not take (penalties beyond 2, say).
    """
    try:
        return _translate(sequence)
    except VLLMValidationError as error:
        raise ValueError(str(error)) from error


def _translate(sequence: Sequence) -> SamplingParams:
    wanted = sequence.params
    return SamplingParams(
        temperature=wanted.temperature,
        top_p=max(wanted.top_p, 1e-9),
        top_k=wanted.top_k,
        min_p=wanted.min_p,
        seed=None if wanted.seed is None or wanted.temperature == 0 else choice_seed(wanted.seed, sequence.index),
        presence_penalty=wanted.presence_penalty,
        frequency_penalty=wanted.frequency_penalty,
        repetition_penalty=wanted.repetition_penalty,
        logit_bias=wanted.logit_bias or None,
        logprobs=wanted.logprobs,
        max_tokens=min(wanted.max_tokens, sequence.context_length - sequence.prompt_length),
        ignore_eos=True,
        stop_token_ids=[] if wanted.ignore_eos else sorted(sequence.eos_ids),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def choice_seed(seed: int, index: int) -> int:
    """A seed of its own for each choice, below 2**63."""
    digest = blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def token_logprob(token: int, position: Mapping[int, Logprob], wanted: int) -> TokenLogprob:
    """`position`: vLLM's likeliest tokens and the sampled one, log-probabilities before any adjustment."""
    ranked = sorted(((each.rank or 0, id, each.logprob) for id, each in position.items()))
    top = tuple((id, logprob) for rank, id, logprob in ranked if rank <= wanted)
    return TokenLogprob(token, position[token].logprob, top)
