"""Data about people that can be told by its form. Each candidate is checked (checksums, numbering plans)."""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from phonenumbers import PhoneNumberMatcher
from stdnum import bitcoin, iban, luhn
from stdnum.us import ssn

from workers.datasets.checks import Numbered

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,6}\b")
CARD = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
SSN = re.compile(r"(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)")
ADDRESS = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
WALLET = re.compile(r"\b(?:bc1[a-z0-9]{25,59}|[13][a-km-zA-HJ-NP-Z1-9]{25,34})\b")
DIGITS = re.compile(r"\d(?:[\s().+-]{0,3}\d){6}")
REGION, MAX_TRIES = "US", 100
EXAMPLES = ("example.com", "example.org", "example.net")


def real_address(text: str) -> bool:
    """Of the public internet: private and reserved ones are nobody's."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def is_card(text: str) -> bool:
    digits = re.sub(r"[ -]", "", text)
    return digits[0] in "23456" and len(set(digits)) > 1 and bool(luhn.is_valid(digits))


def is_email(text: str) -> bool:
    return not text.lower().endswith(EXAMPLES)


FORMS: list[tuple[str, str, re.Pattern[str], Callable[[str], bool]]] = [
    ("email", "@", EMAIL, is_email),
    ("credit_card", "", CARD, is_card),
    ("iban", "", IBAN, iban.is_valid),
    ("us_ssn", "-", SSN, ssn.is_valid),
    ("ip_address", ".", ADDRESS, real_address),
    ("bitcoin_address", "", WALLET, bitcoin.is_valid),
]


class PersonalData:
    """Counts by type; what was found is never kept."""

    def __init__(self) -> None:
        self._types: Counter[str] = Counter()

    def codes(self, numbered: Numbered) -> list[str]:
        types = set(types_in(numbered.text))
        self._types.update(types)
        return ["personal_data"] if types else []

    def summary(self) -> dict[str, Any]:
        return {"types": dict(self._types)}


def types_in(text: str) -> Iterator[str]:
    for name, needed, form, valid in FORMS:
        if needed in text and any(valid(match[0]) for match in form.finditer(text)):
            yield name
    if DIGITS.search(text) and any(PhoneNumberMatcher(text, REGION, max_tries=MAX_TRIES)):
        yield "phone"
