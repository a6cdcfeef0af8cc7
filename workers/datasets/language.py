"""Which language each row is in, by lingua's low-accuracy models: quick and small, and good for whole sentences.

Its time grows with the number of languages, and with all 75 short English texts are taken for Latin or Maori.
"""

from collections import Counter
from typing import Any

from lingua import IsoCode639_1, LanguageDetectorBuilder

from workers.datasets.checks import Numbered

KNOWN = "ar bn cs da de el en es fa fi fr he hi hu id it ja ko nl pl pt ro ru sv th tr uk vi zh"
SAMPLE = 5_000
# Enough to tell; an ASCII text of less than MIN_LETTERS is a guess.
MAX_LETTERS, MIN_LETTERS = 200, 24
# How much likelier than the next the language must be.
MARGIN = 0.1
LANGUAGE = "language:"


class Language:
    """Detection costs as much as all other checks together, so a report looks at about SAMPLE rows, evenly spread."""

    def __init__(self, rows: int, every_row: bool) -> None:
        self._stride = 1 if every_row else max(1, rows // SAMPLE)
        builder = LanguageDetectorBuilder.from_iso_codes_639_1(
            *(getattr(IsoCode639_1, each.upper()) for each in KNOWN.split())
        )
        self._detector = builder.with_low_accuracy_mode().with_minimum_relative_distance(MARGIN).build()
        self._counts: Counter[str] = Counter()
        self._seen = 0

    def codes(self, numbered: Numbered) -> list[str]:
        self._seen += 1
        if (self._seen - 1) % self._stride:
            return []
        language = self._detect(numbered.text)
        self._counts[language] += 1
        return [] if language == "unknown" else [f"{LANGUAGE}{language}"]

    def _detect(self, text: str) -> str:
        """ISO 639-1 in lower case, or `unknown`."""
        if sum(letter.isalpha() for letter in text[:MAX_LETTERS]) < MIN_LETTERS and text.isascii():
            return "unknown"
        found = self._detector.detect_language_of(text[:MAX_LETTERS])
        return found.iso_code_639_1.name.lower() if found else "unknown"

    def summary(self) -> dict[str, Any]:
        return {"sampled_rows": sum(self._counts.values()), "languages": dict(self._counts.most_common(20))}
