"""A 3-gram model with interpolated Kneser-Ney smoothing (Chen & Goodman 1998, one discount): what a model of the last
two tokens can do, to be beaten by one that reads further."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

DISCOUNT = 0.75


class Trigram:
    """Counts of whole trigrams; below them, of how many different tokens came before (continuation counts)."""

    def __init__(self, tokens: Sequence[int], vocabulary: int) -> None:
        triples = Counter(zip(tokens, tokens[1:], tokens[2:], strict=False))
        pairs = Counter((b, c) for _, b, c in triples)
        singles = Counter(c for _, c in pairs)
        self.triples, self.pairs, self.singles, self.vocabulary = triples, pairs, singles, vocabulary
        self.after_two, self.kinds_after_two = totals(triples)
        self.after_one, self.kinds_after_one = totals(pairs)
        self.all = sum(singles.values())

    def chance(self, a: int, b: int, c: int) -> float:
        lowest = discounted(self.singles[c], self.all, len(self.singles), 1 / self.vocabulary)
        lower = discounted(self.pairs[b, c], self.after_one[b,], self.kinds_after_one[b,], lowest)
        return discounted(self.triples[a, b, c], self.after_two[a, b], self.kinds_after_two[a, b], lower)

    def perplexity(self, tokens: Sequence[int]) -> float:
        logs = [math.log(self.chance(a, b, c)) for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False)]
        return math.exp(-sum(logs) / len(logs))


def totals(counts: Mapping[Any, int]) -> tuple[dict[tuple[int, ...], int], dict[tuple[int, ...], int]]:
    """By context: how much was counted, and how many different continuations."""
    sums: dict[tuple[int, ...], int] = defaultdict(int)
    kinds: dict[tuple[int, ...], int] = defaultdict(int)
    for gram, count in counts.items():
        sums[gram[:-1]] += count
        kinds[gram[:-1]] += 1
    return sums, kinds


def discounted(count: int, total: int, kinds: int, lower: float) -> float:
    if not total:
        return lower
    return max(count - DISCOUNT, 0) / total + DISCOUNT * kinds / total * lower
