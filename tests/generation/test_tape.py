"""Recorded kernel calls do what they do at once."""

import pytest
import torch

pytest.importorskip("numba")

from workers.generation.engine.cpu.huge_pages import CHUNK, HugePages
from workers.generation.engine.cpu.multiply import multiply, pack
from workers.generation.engine.cpu.tape import Tape

INNER, OUTER = 96, 150


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_on_tape_equal_those_at_once_for_any_number_of_rows(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    first, second = (pack(torch.randn(*shape).to(dtype)) for shape in ((OUTER, INNER), (INNER, OUTER)))
    tape, before = Tape(64), torch.zeros(1, 64, INNER, dtype=dtype)
    after = multiply(multiply(before, first, OUTER, on=tape), second, INNER, on=tape)
    for rows in (1, 64, 13):
        x = torch.randn(1, rows, INNER).to(dtype)
        before[:, :rows] = x
        tape.play({"rows": rows})
        assert torch.equal(after[:, :rows], multiply(multiply(x, first, OUTER), second, INNER))


def test_a_layer_writes_where_the_one_before_the_last_did_and_not_where_the_last_one_did() -> None:
    tape, like = Tape(8), torch.zeros(1, 8, 4)
    places = []
    for _ in range(3):
        tape.next_layer()
        places.append([tape.empty(like, 4).data_ptr(), tape.empty(like, 4).data_ptr()])
    assert places[0] == places[2]
    assert len({*places[0], *places[1]}) == 4


def test_a_section_counts_rows_of_its_own_and_can_be_left_out() -> None:
    torch.manual_seed(6)
    first, second = (pack(torch.randn(*shape)) for shape in ((OUTER, INNER), (INNER, OUTER)))
    tape, before = Tape(64), torch.randn(1, 64, INNER)
    between = multiply(before, first, OUTER, on=tape)
    calls = tape.next_section("few", 8)
    after = multiply(between, second, INNER, on=tape)
    assert after.shape == (1, 8, INNER)
    tape.play({"rows": 64, "few": 3})
    expected = multiply(multiply(before, first, OUTER)[:, :3], second, INNER)
    assert torch.equal(after[:, :3], expected)
    before.zero_()
    tape.play({"rows": 64, "few": 3}, calls)
    assert not between.any()
    assert torch.equal(after[:, :3], expected)


def test_a_call_with_more_arguments_than_fit_is_refused() -> None:
    from workers.generation.engine.cpu.pointwise import GATE

    with pytest.raises(ValueError, match="more arguments"):
        Tape(8).call(GATE["fp32"], *range(40))


def test_what_is_placed_in_huge_pages_is_a_copy_and_outgrows_a_chunk() -> None:
    memory = HugePages()
    small, large = torch.randn(3, 5), torch.zeros(CHUNK + 64, dtype=torch.uint8)
    large[-1] = 7
    placed, other = memory.place(small), memory.place(large)
    again = memory.place(small.bfloat16())
    kept = small.clone()
    small.zero_()
    assert torch.equal(placed, kept)
    assert torch.equal(again, kept.bfloat16())
    assert int(other[-1]) == 7
