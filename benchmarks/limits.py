"""What this machine's arithmetic allows: the linears of a step packed for oneDNN, the GEMM rate, low-rank products.

ceiling of `mixed`: every decode step's packed linears plus all prompt tokens at the GEMM rate, no attention.
floor of `decode`: a step's packed linears, with adapters also the low-rank products of 16 adapters stacked.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.prepare import ADAPTERS, RANK
from benchmarks.protocol import NEW_TOKENS, Line, Prompts, milliseconds

Shape = tuple[int, int]
LABEL = "limit"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--streams", default="1,16,64")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    config = json.loads((given.work / "base" / "config.json").read_text())
    linears, head = shapes(config)
    prompts = Prompts.load(given.work).mixed
    rate = gemm_rate()
    Line(LABEL, "GEMM", rate / 1e9, unit="GFLOP/s", version=torch.__version__).say()
    for n in (int(each) for each in given.streams.split(",")):
        step = seconds([*linears, head], n)
        low_rank = seconds(low_rank_shapes(config), n)
        prefill = sum(map(len, prompts[:n])) * 2 * sum(out * into for out, into in linears) / rate
        Line(LABEL, "mixed", n * NEW_TOKENS / (NEW_TOKENS * step + prefill), streams=n).say()
        Line(LABEL, "decode", n / step, streams=n).say()
        Line(LABEL, "decode", n / (step + low_rank), adapters=ADAPTERS, streams=n).say()


def shapes(config: dict[str, int]) -> tuple[list[Shape], Shape]:
    """(out, in) of all layers' linears as an engine would fuse them, and of the output head."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    width = config["head_dim"] * config["num_attention_heads"]
    keys = config["head_dim"] * config["num_key_value_heads"]
    layer = [(width + 2 * keys, hidden), (hidden, width), (2 * inner, hidden), (hidden, inner)]
    return layer * config["num_hidden_layers"], (config["vocab_size"], hidden)


def low_rank_shapes(config: dict[str, int]) -> list[Shape]:
    """Down and up of every linear, all adapters' ranks side by side; downs that share their input are one product."""
    hidden, inner, rank = config["hidden_size"], config["intermediate_size"], ADAPTERS * RANK
    width = config["head_dim"] * config["num_attention_heads"]
    keys = config["head_dim"] * config["num_key_value_heads"]
    downs = [(3 * rank, hidden), (rank, width), (2 * rank, hidden), (rank, inner)]
    ups = [(width, rank), (keys, rank), (keys, rank), (hidden, rank), (inner, rank), (inner, rank), (hidden, rank)]
    return (downs + ups) * config["num_hidden_layers"]


def seconds(wanted: list[Shape], rows: int) -> float:
    """The best of several passes over these products with `rows` rows each, bf16, packed once."""
    pack, product = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
    inputs = {into: torch.randn(rows, into).bfloat16() for _, into in wanted}
    work: list[tuple[Tensor, Tensor]] = [
        (inputs[into], pack(torch.randn(out, into).bfloat16(), rows)) for out, into in wanted
    ]
    return best(lambda: [product(x, weight, None, "none", [], "") for x, weight in work])


def gemm_rate() -> float:
    """bf16 FLOP/s of one large product."""
    x, y = torch.randn(1024, 2048).bfloat16(), torch.randn(2048, 2048).bfloat16()
    return 2 * 1024 * 2048 * 2048 / best(lambda: x @ y)


def best(run: Callable[[], object]) -> float:
    return min(milliseconds(run, rounds=9)) / 1e3


if __name__ == "__main__":
    main()
