"""Amounts as people type them."""

from decimal import Decimal, InvalidOperation
from typing import Annotated

from pydantic import BeforeValidator

from app.dollars import MICROS


def micros_of(text: object) -> object:
    """Dollars as typed (`0.50`) → micros, exactly. Raises ValueError for what is no amount or finer than a micro."""
    if not isinstance(text, str):
        return text
    try:
        amount = Decimal(text.strip().removeprefix("$")) * MICROS
    except InvalidOperation as error:
        raise ValueError("write an amount in dollars, as 0.50") from error
    if not amount.is_finite() or amount != amount.to_integral_value() or abs(amount) > 10**15:
        raise ValueError("write an amount in dollars with at most six decimals")
    return int(amount)


Micros = Annotated[int, BeforeValidator(micros_of)]
