"""The figures and the ratios as tables, for a terminal and for docs/benchmarks."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from benchmarks.bars import rows
from benchmarks.protocol import Line

WORKS = ("mixed", "decode", "first")
RATIO_HEAD = ("work", "gptstore", "against", "ratio", "bar", "met")


def figures(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """One row for each engine with and without adapters, one column for each work and number of streams."""
    shared = [line for line in lines if line.work in WORKS]
    columns = sorted({(line.work, line.streams) for line in shared}, key=lambda each: (WORKS.index(each[0]), each[1]))
    subjects = list(dict.fromkeys((line.engine, line.adapters) for line in shared))
    by_place = {(line.engine, line.adapters, line.work, line.streams): line for line in shared}
    head = ["engine", "model", *(f"{work} {streams}" if work != "first" else "first, ms" for work, streams in columns)]
    body = []
    for engine, adapters in subjects:
        cells = [by_place.get((engine, adapters, work, streams)) for work, streams in columns]
        model = f"{adapters} adapters" if adapters else "base"
        body.append([engine, model, *("" if cell is None else f"{cell.value:.0f}" for cell in cells)])
    return head, body


def ratios(lines: Sequence[Line]) -> list[list[str]]:
    """Rows whose two sides were not measured are left out."""
    body = []
    for row in rows(lines):
        if row.ours == "not measured" and row.against == "not measured":
            continue
        met = {True: "yes", False: "no", None: ""}[row.met]
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        body.append([row.work, row.ours, row.against, ratio, row.bar, met])
    return body


def others(lines: Sequence[Line]) -> list[list[str]]:
    """Every figure with its spread."""
    body = []
    for line in lines:
        spread = f"{line.low:.1f}–{line.high:.1f} of {line.rounds}" if line.rounds > 1 else ""
        where = f"{line.adapters} adapters" if line.adapters else "base"
        body.append([line.engine, line.work, where, str(line.streams), f"{line.value:.1f} {line.unit}", spread])
    return body


def figures_table(lines: Sequence[Line]) -> Table:
    head, body = figures(lines)
    return filled(Table(*head, title="tok/s, prefill included, by streams"), body)


def ratio_table(lines: Sequence[Line]) -> Table:
    return filled(Table(*RATIO_HEAD, title="Speed to reach"), ratios(lines))


def filled(table: Table, body: Sequence[Sequence[str]]) -> Table:
    for cells in body:
        table.add_row(*cells)
    return table


def markdown(machine: Mapping[str, str], lines: Sequence[Line], absent: Sequence[str]) -> str:
    """The file for docs/benchmarks."""
    head, body = figures(lines)
    versions = dict.fromkeys(f"{line.engine} {line.version}" for line in lines if line.version)
    described = {**machine, "versions": ", ".join(versions)}
    parts = [
        "# `make bench`",
        "\n".join(f"- {name}: {value}" for name, value in described.items()),
        "All generated tokens / wall time in tok/s, prefill included; first token in ms; medians of the rounds.",
        markdown_table(head, body),
        "## Speed to reach",
        markdown_table(RATIO_HEAD, ratios(lines)),
        "## Every figure",
        markdown_table(("engine", "work", "model", "streams", "value", "rounds"), others(lines)),
    ]
    if absent:
        parts += ["## Not measured", "\n".join(f"- {each}" for each in absent)]
    return "\n\n".join(parts) + "\n"


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body))
