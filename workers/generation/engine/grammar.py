"""Answers of a stated form: a grammar compiled once, a matcher per sequence, a bit per token (llguidance)."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import sha256

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

WORD = 32  # a row of bits is made of 32-bit words
COMPILED = 128  # grammars kept, each well under a megabyte before its first use
# The library counts its work in fuel, so one hostile schema ends in an error after tens of milliseconds.
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000, step_lexer_fuel=200_000, step_max_items=50_000, verbose_errors=False
)
LONGEST_REASON = 300


class InvalidGrammar(ValueError):
    """It cannot be compiled, or nothing at all fits it."""


class GrammarFailed(RuntimeError):
    """The grammar became too costly amid an answer."""


class Matcher:
    """Where one sequence stands in its grammar. Only the engine's thread uses it."""

    def __init__(self, matcher: LLMatcher, words: int) -> None:
        self._matcher = matcher
        self.words = words

    def fill(self, bits: NDArray[np.int32]) -> None:
        """Into `bits[words]`: the tokens that may come next; ends of sequence only where the grammar accepts."""
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)

    def advance(self, token: int) -> bool:
        """Take the chosen token. False: the matcher is broken and `error` says why."""
        # A broken matcher allows, and takes, the end of sequence.
        return self._matcher.consume_token(token) and not self._matcher.is_error()

    @property
    def complete(self) -> bool:
        """Nothing may follow."""
        return self._matcher.is_stopped()

    @property
    def error(self) -> str:
        return self._matcher.get_error()[:LONGEST_REASON]


class Grammar:
    """A compiled one, never advanced itself."""

    def __init__(self, prototype: LLMatcher, words: int) -> None:
        self._prototype = prototype
        self._words = words

    def matcher(self) -> Matcher:
        return Matcher(self._prototype.deep_copy(), self._words)


class Grammars:
    """Of one tokenizer; the most recently used stay compiled. Thread-safe, and meant for the callers' threads."""

    def __init__(self, tokenizer: str, eos_ids: Iterable[int], limits: LLParserLimits = LIMITS) -> None:
        """`tokenizer`: tokenizer.json as text. Raises ValueError for a kind that llguidance does not know."""
        self._tokenizer = LLTokenizer(tokenizer, eos_token=sorted(eos_ids) or None)
        self._words = -(-self._tokenizer.vocab_size // WORD)
        self._limits = limits
        self._compiled: OrderedDict[bytes, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._compiled)

    def compile(self, text: str) -> Grammar:
        """Raises InvalidGrammar. Other threads run meanwhile; two of them may compile the same one."""
        digest = sha256(text.encode()).digest()
        with self._lock:
            if (known := self._compiled.get(digest)) is not None:
                self._compiled.move_to_end(digest)
                return known
        grammar = self._compile(text)
        with self._lock:
            self._compiled[digest] = grammar
            if len(self._compiled) > COMPILED:
                self._compiled.popitem(last=False)
        return grammar

    def _compile(self, text: str) -> Grammar:
        prototype = LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits)
        if prototype.is_error():
            raise InvalidGrammar(reason(prototype.get_error()))
        # Some grammars turn out to be empty only when the first token is asked for.
        trial = prototype.deep_copy()
        trial.compute_bitmask()
        if trial.is_error() or (trial.is_stopped() and not trial.is_accepting()):
            raise InvalidGrammar("nothing fits it")
        return Grammar(prototype, self._words)


def reason(error: str) -> str:
    """The library's first line, without its place in a text that the client never wrote."""
    line = error.strip().partition("\n")[0]
    return line.partition("failed to compile JSON schema: ")[2][:LONGEST_REASON] or line[:LONGEST_REASON]
