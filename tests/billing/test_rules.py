"""Rounding happens once, never against the store by more than a micro, never against the seller."""

from hypothesis import given
from hypothesis import strategies as st

from app.billing.rules import completion_tokens_within, split_call, split_price, token_micros

TOKENS = st.integers(0, 10**6)
PRICES = st.integers(0, 10**9)
MILLION = 1_000_000


def test_one_token_costs_at_least_one_micro() -> None:
    assert token_micros(1, 0, 50_000, 150_000) == 1
    assert token_micros(10, 10, 50_000, 150_000) == 2
    assert token_micros(0, 0, 50_000, 150_000) == 0


@given(TOKENS, TOKENS, PRICES, PRICES)
def test_a_charge_is_the_exact_price_rounded_up_once(prompt: int, completion: int, dear: int, dearer: int) -> None:
    exact = prompt * dear + completion * dearer
    charge = token_micros(prompt, completion, dear, dearer)
    assert 0 <= charge * MILLION - exact < MILLION


@given(st.integers(0, 10**12), st.integers(0, 100))
def test_the_fee_rounds_down_and_nothing_is_lost(price: int, percent: int) -> None:
    split = split_price(price, percent)
    assert split.seller + split.platform == price
    assert split.platform * 100 <= price * percent < (split.platform + 1) * 100


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 100))
def test_the_base_is_paid_before_the_seller(charge: int, base_part: int, percent: int) -> None:
    split = split_call(charge, base_part, percent)
    assert split.seller + split.platform == charge
    assert split.platform >= min(charge, base_part)
    assert 0 <= split.seller <= max(charge - base_part, 0)


@given(st.integers(0, 10**9), TOKENS, PRICES, st.integers(1, 10**9))
def test_the_affordable_answer_is_the_longest_that_the_wallet_covers(
    available: int, prompt: int, dear: int, dearer: int
) -> None:
    tokens = completion_tokens_within(available, prompt, dear, dearer)
    assert tokens == 0 or token_micros(prompt, tokens, dear, dearer) <= available
    assert token_micros(prompt, tokens + 1, dear, dearer) > available
