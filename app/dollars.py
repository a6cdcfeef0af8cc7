"""Money as people read it. Inside, and in the API, it is a whole number of micros. Pure."""

import re
from decimal import Decimal

MICROS = 1_000_000
AMOUNT = re.compile(r"\b(\d+) micros\b")


def usd(micros: int) -> str:
    """Exact to the micro, at least two decimals: `$0.50`, `$0.000012`, `−$1.25`."""
    whole, _, decimals = f"{abs(micros) / Decimal(MICROS):,.6f}".partition(".")
    return f"{'−' if micros < 0 else ''}${whole}.{decimals[:2]}{decimals[2:].rstrip('0')}"


def in_dollars(message: str) -> str:
    """A refusal for people: the API's own words say `500000 micros`."""
    return AMOUNT.sub(lambda amount: usd(int(amount[1])), message)
