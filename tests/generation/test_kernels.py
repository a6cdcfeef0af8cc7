"""The compiled kernels against the same arithmetic in torch, at awkward sizes, and with the processor's bf16 products
done without."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.generation.engine.kv_cache import BLOCK_SIZE
from workers.generation.engine.kv_pages import Shape, Spans

np = pytest.importorskip("numpy")
pytest.importorskip("numba")

DTYPES = [torch.float32, torch.bfloat16]
CLOSE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
SIZES = [(1, 576, 960), (7, 30, 65), (13, 64, 64), (100, 96, 130), (6, 2, 1)]
SHAPES = [Shape(9, 3, 64, 0.125), Shape(4, 2, 24, 0.2, window=40), Shape(5, 5, 16, 0.25), Shape(16, 1, 128, 0.1)]


def close(got: Tensor, expected: Tensor) -> bool:
    """Relative to the largest number: sums are rounded once, to the type of `got`."""
    return bool((got.float() - expected).abs().max() <= CLOSE[got.dtype] * (1 + expected.abs().max()))


@pytest.fixture(scope="module", params=["with", "without"])
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The modules `multiply`, `low_rank`: as they are, or compiled for a processor that cannot multiply bf16."""
    from numba.core import config

    names = ["tile", "multiply", "low_rank"]
    tile, *kernels = (importlib.import_module(f"workers.generation.engine.cpu.{name}") for name in names)
    if request.param == "with":
        yield kernels
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        patch.setattr(tile, "HAS_PAIRS", False)
        patch.setattr(tile, "DOTS", {pair: tile.dots(pair) for pair in (True, False)})
        patch.setattr(tile, "MULTIPLY", {key: tile.family(*key) for key in tile.MULTIPLY})
        yield [importlib.reload(module) for module in kernels]
    for module in kernels:
        importlib.reload(module)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_equal_torch_and_no_row_depends_on_its_company(pairs: Any, dtype: torch.dtype) -> None:
    multiply, _ = pairs
    for rows, inner, outer in SIZES:
        torch.manual_seed(rows)
        x, weight = torch.randn(1, rows, inner).to(dtype), torch.randn(outer, inner).to(dtype)
        bias, onto = torch.randn(outer).to(dtype), torch.randn(1, rows, outer).to(dtype)
        panels = multiply.pack(weight)
        got = multiply.multiply(x, panels, outer, bias, onto)
        assert close(got, x.float() @ weight.float().t() + bias.float() + onto.float())
        alone = multiply.multiply(x[:, -1:].contiguous(), panels, outer, bias, onto[:, -1:].contiguous())
        assert torch.equal(alone, got[:, -1:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_low_rank_updates_equal_torch_and_touch_only_their_rows(pairs: Any, dtype: torch.dtype) -> None:
    from workers.generation.engine import cpu

    _, low_rank = pairs
    for rank, inner, outer in [(8, 576, 192), (3, 30, 70), (1, 64, 5)]:
        torch.manual_seed(rank)
        x, before = torch.randn(20, inner).to(dtype), torch.randn(20, outer + 9).to(dtype)
        a, b = torch.randn(rank, inner).to(dtype), torch.randn(rank, outer).to(dtype) / 8
        down, up = low_rank.pack_down(a), low_rank.pack_up(b)
        tables = torch.tensor([[low_rank.entry(down, up, 4, outer)]])
        pieces, out = torch.tensor([[2, 13, 0], [17, 1, 0]]), before.clone()
        low_rank.LOW_RANK[cpu.KINDS[dtype]](
            *(x.data_ptr(), out.data_ptr(), inner, outer + 9, pieces.data_ptr(), 2, tables.data_ptr(), 6, 1),
            down.shape[0],
        )
        rows = [*range(2, 15), 17]
        expected = before.float()
        expected[rows, 4 : 4 + outer] += (x[rows].float() @ a.float().t()).to(dtype).float() @ b.float()
        assert close(out[rows], expected[rows])
        others = [row for row in range(20) if row not in rows]
        assert torch.equal(out[others], before[others])
        assert torch.equal(out[:, :4], before[:, :4]) and torch.equal(out[:, 4 + outer :], before[:, 4 + outer :])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_over_pages_equals_torch_however_a_prompt_is_cut(shape: Shape, dtype: torch.dtype) -> None:
    from workers.generation.engine.cpu.pages import KernelPages

    torch.manual_seed(1)
    length = 5 * BLOCK_SIZE + 7
    qkv = torch.randn(length, shape.heads + 2 * shape.kv_heads, shape.head_dim).to(dtype)
    pages = KernelPages(8, shape.kv_heads, shape.head_dim, dtype)
    table = np.array([[3, 1, 7, 2, 5, 6]])
    places = np.arange(length)
    pages.store(qkv, torch.from_numpy(table[0, places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE), shape)

    def attend(cuts: list[tuple[int, int]]) -> Tensor:
        starts, ends = np.array(cuts).T
        spans = Spans(starts, ends - starts, starts, np.repeat(table, len(cuts), 0))
        return pages.attend(qkv, pages.plan(spans, torch.device("cpu")), shape)

    whole = attend([(0, length)])
    assert close(whole.flatten(1), expected_attention(qkv.float(), shape).flatten(1))
    assert torch.equal(attend([(0, 1), (1, 70), (70, 71), (71, length)]), whole)
    assert torch.equal(attend([(at, at + 1) for at in range(length)]), whole)


def expected_attention(qkv: Tensor, shape: Shape) -> Tensor:
    query, key, value = torch.split(qkv, [shape.heads, shape.kv_heads, shape.kv_heads], 1)
    key, value = (each.repeat_interleave(shape.heads // shape.kv_heads, 1) for each in (key, value))
    places = torch.arange(len(qkv))
    hidden = places[None] > places[:, None]
    if shape.window:
        hidden |= places[None] <= places[:, None] - shape.window
    scores = torch.einsum("qhd,khd->hqk", query, key) * shape.scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), value)
