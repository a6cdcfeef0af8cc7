"""Text that strangers read: nothing in it may hide, or turn round what stands beside it. Pure."""

import re
from typing import Annotated
from unicodedata import category

from pydantic import AfterValidator

# Embeddings, overrides and isolates: they reorder the text around them (Unicode TR 36, "bidirectional text spoofing").
TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")
# Letters and signs by category, yet drawn as nothing.
BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp"})


def check_prose(text: str) -> str:
    """Joiners and marks that scripts need are fine. Raises ValueError."""
    if TURNING.search(text):
        raise ValueError("may not contain characters that change the direction of writing")
    return text


def check_title(text: str) -> str:
    """One line of which all is seen: two that look the same are the same but for look-alike letters. ValueError."""
    if any(char in BLANKS or category(char) in UNSEEN for char in text) or not text.strip():
        raise ValueError("must be one visible line, without invisible or control characters")
    return text


Prose = Annotated[str, AfterValidator(check_prose)]
Title = Annotated[str, AfterValidator(check_title)]
