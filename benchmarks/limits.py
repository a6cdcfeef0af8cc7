"""What this machine's arithmetic allows: the linears of a step packed for oneDNN, the GEMM rate, low-rank products.

ceiling of `mixed`: every decode step's packed linears plus all prompt tokens at the GEMM rate, no attention.
floor of `decode`: a step's packed linears, with adapters also the low-rank products of 16 adapters stacked.
On a GPU a step's products are taken for their weights' way from memory, at the speed of a copy.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.prepare import ADAPTERS, RANK
from benchmarks.protocol import NEW_TOKENS, Line, Prompts, milliseconds

Shape = tuple[int, int]
LABEL, BANDWIDTH = "limit", "bandwidth"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--streams", default="1,16,64")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    config = json.loads((given.work / "base" / "config.json").read_text())
    linears, head = shapes(config)
    prompts = Prompts.load(given.work).mixed
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = gemm_rate(device)
    Line(LABEL, "GEMM", rate / 1e9, unit="GFLOP/s", version=torch.__version__).say()
    least = seconds
    if device == "cuda":
        speed = bandwidth(device)
        Line(LABEL, BANDWIDTH, speed / 1e9, unit="GB/s", version=torch.__version__).say()
        least = partial(seconds_from_memory, speed)
    for n in (int(each) for each in given.streams.split(",")):
        step = least([*linears, head], n)
        low_rank = least(low_rank_shapes(config), n)
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


def seconds_from_memory(speed: float, wanted: list[Shape], rows: int) -> float:
    """These products' bf16 weights at `speed` bytes per second, whatever the rows."""
    return sum(2 * out * into for out, into in wanted) / speed


def gemm_rate(device: str) -> float:
    """bf16 FLOP/s of one large product."""
    rows, inner = (1024, 2048) if device == "cpu" else (8192, 8192)
    x, y = (torch.randn(size, inner, device=device).bfloat16() for size in (rows, inner))
    return 2 * rows * inner * inner / best(lambda: x @ y.t(), device)


def bandwidth(device: str) -> float:
    """Bytes per second that memory gives and takes when 2 GiB are copied, so many that nothing else counts."""
    source = torch.ones(1 << 31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best(lambda: target.copy_(source), device)


def best(run: Callable[[], object], device: str = "cpu") -> float:
    def done() -> None:
        run()
        if device == "cuda":
            torch.cuda.synchronize()

    return min(milliseconds(done, rounds=9)) / 1e3


if __name__ == "__main__":
    main()
