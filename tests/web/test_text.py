"""Money, markdown and curves as pages write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dollars import in_dollars, usd
from app.web.curve import HEIGHT, MAX_POINTS, WIDTH, draw
from app.web.money import micros_of
from app.web.text import cents, dollars, markdown, signed_usd


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "$0.00"), (500_000, "$0.50"), (12, "$0.000012"), (1_234_567_890, "$1,234.56789"), (-1_250_000, "−$1.25")],
)
def test_money_is_exact_to_the_micro(micros: int, text: str) -> None:
    assert usd(micros) == text


def test_a_refusal_is_told_in_dollars() -> None:
    told = in_dollars("It may cost 500000 micros; you have 12 micros, and 3 tokens.")
    assert told == "It may cost $0.50; you have $0.000012, and 3 tokens."


def test_money_at_a_glance_never_shows_more_than_there_is() -> None:
    assert cents(1_999_999) == "$1.99"
    assert signed_usd(10_000) == "+$0.01"


@given(st.integers(min_value=0, max_value=10**12))
def test_what_a_form_shows_means_the_same_when_sent_back(micros: int) -> None:
    assert micros_of(dollars(micros)) == micros


def test_a_card_is_formatted_and_inert() -> None:
    html = markdown("# T\n\n**b** `c` <b onclick=x>d</b>\n\n|a|b|\n|-|-|\n|1|2|\n\n[l](data:text/html,x) [m](/wallet)")
    assert "<h3>T</h3>" in html
    assert "<strong>b</strong> <code>c</code>" in html
    assert "<td>1</td>" in html
    assert "<b " not in html
    assert "href" not in html


@given(
    st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=600),
    st.integers(min_value=0, max_value=400),
)
def test_a_curve_stays_inside_its_frame(losses: list[float], to_come: int) -> None:
    total = len(losses) + to_come
    metrics = [{"step": at + 1, "total_steps": total, "train_loss": loss} for at, loss in enumerate(losses)]
    curve = draw(metrics)
    assert curve is not None
    points = [tuple(map(float, point.split(","))) for point in curve.train.split()]
    assert len(points) == min(len(losses), MAX_POINTS)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert 2 <= len(curve.y_ticks) <= 12


def test_there_is_no_curve_before_the_first_step() -> None:
    assert draw([]) is None
