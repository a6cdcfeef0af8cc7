"""Pure decisions about money, in integer micros. Every rounding happens here, once."""

from dataclasses import dataclass

MILLION = 1_000_000


def token_micros(prompt_tokens: int, completion_tokens: int, input_price: int, output_price: int) -> int:
    """ceil(Σ tokens × micros per million / 1,000,000), rounded once."""
    return -(-(prompt_tokens * input_price + completion_tokens * output_price) // MILLION)


@dataclass(frozen=True)
class Split:
    """What a charge gives to whom; the two add up to the charge."""

    seller: int
    platform: int


def split_price(price: int, fee_percent: int) -> Split:
    """Of an access price. The fee rounds down, so a seller never loses a fraction."""
    fee = price * fee_percent // 100
    return Split(seller=price - fee, platform=fee)


def split_call(charge: int, base_part: int, fee_percent: int) -> Split:
    """Of a call: the base's platform price first, the fee on the rest (down), what remains to the seller."""
    base = min(base_part, charge)
    rest = split_price(charge - base, fee_percent)
    return Split(seller=rest.seller, platform=base + rest.platform)


def completion_tokens_within(available: int, prompt_tokens: int, input_price: int, output_price: int) -> int:
    """How many completion tokens `available` micros cover besides the prompt; a free model covers any number."""
    room = available * MILLION - prompt_tokens * input_price
    if room < 0:
        return 0
    return room // output_price if output_price else MILLION
