"""The compiled kernels against the same arithmetic in torch, at awkward sizes, and with the processor's bf16 products
done without."""

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from workers.generation.engine.kv_cache import BLOCK_SIZE
from workers.generation.engine.kv_pages import Shape, Spans

pytest.importorskip("numba")

DTYPES = [torch.float32, torch.bfloat16]
CLOSE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
SIZES = [(1, 576, 960), (7, 30, 65), (13, 64, 64), (32, 64, 160), (100, 96, 130), (6, 2, 1)]
# More rows than a task of matrices takes; rows that pass in parts, of which the last is shorter.
LARGE = [(1000, 576, 96), (70, 2080, 96), (40, 1500, 64)]
SHAPES = [Shape(9, 3, 64, 0.125), Shape(4, 2, 24, 0.2, window=40), Shape(5, 5, 16, 0.25), Shape(16, 1, 128, 0.1)]


def close(got: Tensor, expected: Tensor) -> bool:
    """Relative to the largest number: sums are rounded once, to the type of `got`."""
    return bool((got.float() - expected).abs().max() <= CLOSE[got.dtype] * (1 + expected.abs().max()))


@pytest.fixture(scope="module", params=["all", "no matrices", "no bf16"])
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The modules of the kernels: as this processor has them, or compiled for one that multiplies no whole matrices of
    bf16, or no bf16 at all.
    """
    from numba.core import config

    names = ["soften", "low_rank", "finish", "registers", "matrices", "multiply", "int8", "attend", "pages"]
    amx, vectors, tile, *kernels = (
        importlib.import_module(f"workers.generation.engine.cpu.{name}") for name in ["amx", "vectors", "tile", *names]
    )
    if request.param == "all":
        yield dict(zip(names, kernels, strict=True))
        return
    if request.param == "no matrices" and not amx.AVAILABLE:
        pytest.skip("this processor is one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        patch.setattr(amx, "AVAILABLE", False)
        if request.param == "no bf16":
            patch.setattr(vectors, "HAS_PAIRS", False)
            patch.setattr(tile, "HAS_PAIRS", False)
            patch.setattr(tile, "HAS_BYTES", False)
            patch.setattr(tile, "DOT", tile.dots_of_kind())
            patch.setattr(tile, "MULTIPLY", {count: tile.family(count) for count in tile.MULTIPLY})
        yield {name: importlib.reload(module) for name, module in zip(names, kernels, strict=True)}
    for module in kernels:
        importlib.reload(module)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_equal_torch_and_no_row_depends_on_its_company(pairs: Any, dtype: torch.dtype) -> None:
    multiply = pairs["multiply"]
    for rows, inner, outer in [*SIZES, *LARGE]:
        torch.manual_seed(rows)
        x, weight = torch.randn(1, rows, inner).to(dtype), torch.randn(outer, inner).to(dtype)
        bias, onto = torch.randn(outer).to(dtype), torch.randn(1, rows, outer).to(dtype)
        panels = multiply.pack(weight)
        got = multiply.multiply(x, panels, outer, bias, onto, None)
        assert close(got, x.float() @ weight.float().t() + bias.float() + onto.float())
        alone = multiply.multiply(x[:, -1:].contiguous(), panels, outer, bias, onto[:, -1:].contiguous(), None)
        assert torch.equal(alone, got[:, -1:])
    for inner, outer in ((1500, 128), (750, 64), (750, 128)):
        with pytest.raises(ValueError, match="form"):
            multiply.multiply(x[..., :inner].contiguous(), panels, outer)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adapters_change_the_products_of_their_rows_and_of_no_others(pairs: Any, dtype: torch.dtype) -> None:
    low_rank = pairs["low_rank"]
    inner, widths, ranks = 30, [70, 100, 5], [8, 3]
    torch.manual_seed(1)
    x, weight = torch.randn(1, 20, inner).to(dtype), torch.randn(sum(widths), inner).to(dtype)
    owners = torch.tensor([-1, -1, *[0] * 9, *[1] * 8, -1])
    tables = torch.zeros(2, 3, low_rank.ENTRY, dtype=torch.int64)
    expected, kept = x[0].float() @ weight.float().t(), []
    for adapter, rank in enumerate(ranks):
        rows = owners == adapter
        for part, width in enumerate(widths):
            if (adapter, part) == (1, 1):
                continue  # this adapter leaves this part alone
            begin = sum(widths[:part])
            a, b = torch.randn(rank, inner).to(dtype), torch.randn(rank, width).to(dtype) / 8
            kept.append((low_rank.pack_down(a), low_rank.pack_up(b, begin)))
            tables[adapter, part] = torch.tensor(low_rank.entry(*kept[-1], begin))
            low = (x[0, rows].float() @ a.float().t()).to(dtype)
            expected[rows, begin : begin + width] += low.float() @ b.float()
    changes = low_rank.Changes(owners.data_ptr(), tables.data_ptr(), tables.stride(0), 8, begin=0, parts=3, room=8)
    places = owners[12:13].contiguous()
    alone = dataclasses.replace(changes, owners=places.data_ptr())
    for product in (pairs["multiply"], pairs["int8"]):
        packed = product.pack(weight)
        got = product.multiply(x, packed, sum(widths), None, None, changes)
        plain = product.multiply(x, packed, sum(widths))
        assert close(got[0] - plain[0], expected - x[0].float() @ weight.float().t())
        assert torch.equal(got[0, owners < 0], plain[0, owners < 0])
        single = product.multiply(x[:, 12:13].contiguous(), packed, sum(widths), None, None, alone)
        assert torch.equal(single[0], got[0, 12:13])


def in_groups(x: Tensor, group: int) -> Tensor:
    """Each group of a row rounded to 255 values."""
    padded = torch.nn.functional.pad(x.float(), (0, -x.shape[-1] % group)).view(1, x.shape[1], -1, group)
    most = padded.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    rounded: Tensor = ((padded * (127 / most)).round() * (most / 127)).flatten(-2)
    return rounded[..., : x.shape[-1]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_eight_bits_are_those_of_the_rounded_numbers_and_no_row_depends_on_its_company(
    pairs: Any, dtype: torch.dtype
) -> None:
    int8 = pairs["int8"]
    for rows, inner, outer in SIZES:
        torch.manual_seed(rows)
        x, weight = torch.randn(1, rows, inner).to(dtype), torch.randn(outer, inner).to(dtype)
        bias, onto = torch.randn(outer).to(dtype), torch.randn(1, rows, outer).to(dtype)
        x[0, 0, 0], weight[0] = 300, 0  # an outlier; an output that is always 0
        packed = int8.pack(weight)
        got = int8.multiply(x, packed, outer, bias, onto)
        scale = weight.float().abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
        rounded = in_groups(x, int8.GROUP) @ ((weight.float() / scale).round() * scale).t()
        exact = x.float() @ weight.float().t() + bias.float() + onto.float()
        assert (got.float() - exact)[0, 1:].norm() < 0.02 * exact.norm()
        wide = int8.multiply(x, packed, outer, wide=True)
        assert wide.dtype == torch.float32
        assert (wide - rounded).norm() <= 1e-3 * (1 + rounded.norm())  # a number half-way may go either way
        alone = int8.multiply(x[:, -1:].contiguous(), packed, outer, bias, onto[:, -1:].contiguous())
        assert torch.equal(alone, got[:, -1:])
    assert packed.panels.numel() == int8.GROUP * 64 and packed.panels.dtype == torch.uint8


@pytest.mark.parametrize("vocabulary", [5, 64, 130, 1000])
def test_a_token_is_the_first_of_the_likeliest_or_where_the_cumulative_probability_passes_its_number(
    vocabulary: int,
) -> None:
    from workers.generation.engine.cpu.choose import choose

    torch.manual_seed(vocabulary)
    logits = torch.randn(40, vocabulary).mul(4).round()  # with ties
    assert choose(logits, np.zeros(40), np.zeros(40)) == logits.argmax(-1).tolist()
    temperature, shares = 0.7, np.linspace(0, 1, 40, endpoint=False)
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    expected = (cumulative > torch.from_numpy(shares)[:, None]).int().argmax(-1)
    chosen = torch.tensor(choose(logits, np.full(40, 1 / temperature), shares))
    off = torch.minimum(cumulative[range(40), chosen], cumulative[range(40), expected]) - torch.from_numpy(shares)
    assert ((chosen == expected) | (off.abs() < 1e-5)).all()
    with pytest.raises(ValueError, match="form"):
        choose(logits.t(), np.zeros(vocabulary), np.zeros(vocabulary))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_over_pages_equals_torch_however_a_prompt_is_cut(
    pairs: Any, shape: Shape, dtype: torch.dtype
) -> None:
    KernelPages = pairs["pages"].KernelPages  # noqa: N806 (a class)
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
        told: Tensor = pages.attend(qkv, pages.plan(spans), shape)
        return told

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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("query", [0.5, 1e20, float("-inf")])
def test_what_another_sequence_left_in_a_page_reaches_nobody(pairs: Any, dtype: torch.dtype, query: float) -> None:
    shape = Shape(2, 1, 16, 0.25)
    told = []
    for left in (0.0, 3e38):
        pages = pairs["pages"].KernelPages(2, 1, 16, dtype)
        table, places = np.array([[1]]), torch.arange(BLOCK_SIZE) + BLOCK_SIZE
        pages.store(torch.full((BLOCK_SIZE, 4, 16), left).to(dtype), places, shape)
        qkv = torch.ones(3, 4, 16).to(dtype)
        qkv[:, :2], qkv[:, 2] = query, -abs(query)
        pages.store(qkv, places[:3], shape)
        starts = np.arange(3)
        spans = Spans(starts, np.ones(3, dtype=np.int64), starts, np.repeat(table, 3, 0))
        told.append(pages.attend(qkv, pages.plan(spans), shape))
    assert torch.equal(told[0].view(torch.uint8), told[1].view(torch.uint8))
    assert query != 0.5 or close(told[1].flatten(1), torch.ones(3, 32))


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_near_the_ends_of_fp32_are_compared_rightly(pairs: Any, sign: int) -> None:
    shape, large = Shape(1, 1, 16, 1.0), 4e18
    qkv = torch.tensor([[sign * large, large, 1.0], [sign * large, large / 2, 2.0]])[..., None].repeat(1, 1, 16)
    pages = pairs["pages"].KernelPages(2, 1, 16, torch.float32)
    pages.store(qkv, torch.arange(2), shape)
    spans = Spans(np.array([0]), np.array([2]), np.array([0]), np.array([[0]]))
    told = pages.attend(qkv, pages.plan(spans), shape)
    assert told[:, 0, 0].tolist() == [1, 1 if sign > 0 else 2]


def test_a_row_that_sees_nothing_of_its_task_s_first_stretch_is_what_it_is_alone(pairs: Any) -> None:
    """However little its own scores are."""
    shape, length = Shape(1, 1, 16, 0.02, window=100), 300
    torch.manual_seed(2)
    qkv = torch.randn(length, 3, 16)
    qkv[:, :2] = 4.4e18 * torch.tensor([1.0, -1.0])[:, None] * (1 + torch.rand(length, 1, 1) / 50)
    pages = pairs["pages"].KernelPages(10, 1, 16, torch.float32)
    pages.store(qkv, torch.arange(length), shape)

    def attend(starts: np.ndarray, ends: np.ndarray) -> Tensor:
        spans = Spans(starts, ends - starts, starts, np.repeat(np.arange(10)[None], len(starts), 0))
        told: Tensor = pages.attend(qkv, pages.plan(spans), shape)
        return told

    alone = attend(np.arange(length), np.arange(1, length + 1))
    assert torch.equal(attend(np.array([0]), np.array([length])), alone)
    assert torch.isfinite(alone).all()


def test_a_layer_of_another_form_than_its_pages_is_refused(pairs: Any) -> None:
    pages, places = pairs["pages"].KernelPages(2, 1, 16, torch.bfloat16), torch.arange(1)
    for heads, dtype in ((1, torch.float32), (2, torch.bfloat16)):
        with pytest.raises(ValueError, match="form"):
            pages.store(torch.ones(1, 3 * heads, 16, dtype=dtype), places, Shape(heads, heads, 16, 0.25))
    with pytest.raises(ValueError, match="form"):
        pages.store(torch.ones(1, 3, 32).bfloat16(), places, Shape(1, 1, 32, 0.25))
