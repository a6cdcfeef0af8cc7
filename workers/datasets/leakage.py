"""Rows that a second file has too: what was trained on proves nothing when it is asked again."""

from collections.abc import Iterable, Iterator
from typing import Any

from workers.datasets.checks import Numbered
from workers.datasets.duplicates import digest
from workers.datasets.similarity import NearRows


class Leakage:
    """Knows the rows of the other file, then sees those of this one."""

    def __init__(self, others: Iterable[Numbered], count: int) -> None:
        self._rows: set[bytes] = set()
        self._questions: set[bytes] = set()
        self._near = NearRows(count)
        self._learn(iter(others))

    def _learn(self, others: Iterator[Numbered]) -> None:
        for other in others:
            self._rows.add(digest(other.text))
            if question := other.row.question():
                self._questions.add(digest(question))
            signature = self._near.signature(other.text)
            if self._near.find(signature) is None:
                self._near.remember(other.line, signature)

    def codes(self, numbered: Numbered) -> list[str]:
        if digest(numbered.text) in self._rows:
            return ["leak"]
        question = numbered.row.question()
        if question and digest(question) in self._questions:
            return ["leaked_question"]
        near = self._near.find(self._near.signature(numbered.text))
        return ["near_leak"] if near is not None else []

    def summary(self) -> dict[str, Any]:
        return {"against_rows": len(self._rows), "remembered_rows": self._near.held}
