"""Near duplicates in memory that does not grow: MinHash signatures (datasketch) in a banded table of fixed size.

datasketch's own LSH keeps every row of a bucket, so a file of a hundred thousand rows of one pattern takes quadratic
time; here a slot remembers the last row only, and each candidate is compared by its whole signature.
"""

import re
import zlib

import numpy as np
from datasketch import MinHash

# A pair whose sets of word triples overlap by 0.8 shares one of 10 bands with probability 0.95.
BANDS, ROWS_PER_BAND = 10, 6
PERMUTATIONS = BANDS * ROWS_PER_BAND
THRESHOLD = 0.8
SLOTS = 1 << 18
MOST = 200_000
MAX_WORDS = 2_000
WORD = re.compile(r"\w+")


class NearRows:
    """Up to `capacity` signatures, at most MOST; rows past that are looked up but not remembered."""

    def __init__(self, capacity: int) -> None:
        self.lines = np.zeros(min(capacity, MOST) + 1, np.int64)
        self._signatures = np.zeros((len(self.lines), PERMUTATIONS), np.uint32)
        self._slots = np.zeros((BANDS, SLOTS), np.int32)
        self._bands = np.arange(BANDS)
        self._empty = MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32)
        self.held = 0

    def signature(self, text: str) -> np.ndarray:
        """Of the word triples of the first MAX_WORDS words."""
        words = [match[0] for match in WORD.finditer(text.lower())][:MAX_WORDS]
        triples = {" ".join(words[at : at + 3]).encode() for at in range(max(1, len(words) - 2))}
        made = self._empty.copy()
        made.update_batch(triples)
        return np.asarray(made.hashvalues, np.uint32)

    def find(self, signature: np.ndarray) -> int | None:
        """The line of a remembered row that is nearly the same."""
        candidates = self._slots[self._bands, self._addresses(signature)]
        alike = (self._signatures[candidates] == signature).sum(axis=1) / PERMUTATIONS
        best = int(alike.argmax())
        return int(self.lines[candidates[best]]) if candidates[best] and alike[best] >= THRESHOLD else None

    def remember(self, line: int, signature: np.ndarray) -> None:
        if self.held + 1 >= len(self.lines):
            return
        self.held += 1
        self.lines[self.held], self._signatures[self.held] = line, signature
        self._slots[self._bands, self._addresses(signature)] = self.held

    def _addresses(self, signature: np.ndarray) -> np.ndarray:
        """One slot a band."""
        bands = signature.reshape(BANDS, ROWS_PER_BAND).tobytes()
        width = ROWS_PER_BAND * signature.itemsize
        return np.array([zlib.crc32(bands[at * width : (at + 1) * width]) % SLOTS for at in range(BANDS)])
