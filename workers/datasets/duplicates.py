"""The same row twice in one file: to the letter, or nearly."""

import hashlib
from typing import Any

from workers.datasets.checks import Numbered
from workers.datasets.similarity import THRESHOLD, NearRows


def digest(text: str) -> bytes:
    """Of the words alone: case and spaces are no difference."""
    return hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=12).digest()


class Duplicates:
    """Only the later of two is found, so that dropping what was found keeps one."""

    def __init__(self, rows: int) -> None:
        self._seen: set[bytes] = set()
        self._near = NearRows(rows)

    def codes(self, numbered: Numbered) -> list[str]:
        same = digest(numbered.text)
        if same in self._seen:
            return ["duplicate"]
        self._seen.add(same)
        signature = self._near.signature(numbered.text)
        if self._near.find(signature) is not None:
            return ["near_duplicate"]
        self._near.remember(numbered.line, signature)
        return []

    def summary(self) -> dict[str, Any]:
        return {"distinct_rows": len(self._seen), "remembered_rows": self._near.held, "threshold": THRESHOLD}
