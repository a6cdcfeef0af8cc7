"""How often each short answer occurs: a classifier trained on one class nine times of ten learns that class."""

from collections import Counter
from typing import Any

from app.files.rows import Kind
from workers.datasets.checks import Numbered

LONGEST, MOST_CLASSES, SHOWN = 64, 1_000, 20


class Balance:
    """Answers past LONGEST characters are no classes; nor are more than MOST_CLASSES different ones."""

    def __init__(self) -> None:
        self._classes: Counter[str] = Counter()
        self._rows = 0

    def codes(self, numbered: Numbered) -> list[str]:
        if numbered.row.kind is Kind.TEXT:
            return []
        self._rows += 1
        answer = " ".join(numbered.row.answer().split())
        known = answer in self._classes
        if len(answer) <= LONGEST and answer.isprintable() and (known or len(self._classes) < MOST_CLASSES):
            self._classes[answer] += 1
        return []

    def summary(self) -> dict[str, Any]:
        """Classes are told only where they cover most rows and repeat."""
        covered = sum(self._classes.values())
        if not covered or covered < 0.8 * self._rows or len(self._classes) > covered / 5:
            return {"classes": None}
        top = self._classes.most_common(SHOWN)
        return {"classes": dict(top), "distinct": len(self._classes), "largest_share": round(top[0][1] / covered, 3)}
