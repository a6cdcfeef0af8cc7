"""The speed to reach, row by row: our figure, what it is held against, and the ratio."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.protocol import Line

OURS, STORE, LIMIT = "gptstore", "gptstore store", "limit"
LORA = 16


@dataclass(frozen=True)
class Row:
    """`bar` with its sense; `ratio` None where a figure is missing."""

    work: str
    ours: str
    against: str
    ratio: float | None
    bar: str
    met: bool | None


@dataclass(frozen=True)
class Figures:
    lines: Sequence[Line]

    def find(self, engine: str, work: str, adapters: int, streams: int) -> Line | None:
        """The best of the engines whose name begins so (vLLM has two modes)."""
        wanted = (work, adapters, streams)
        return best(x for x in self.lines if x.engine.startswith(engine) and key(x) == wanted)

    def own(self, work: str, adapters: int = 0, streams: int = 1, engine: str = OURS) -> Line | None:
        return next((x for x in self.lines if x.engine == engine and key(x) == (work, adapters, streams)), None)

    def best_peer(self, work: str, adapters: int, streams: int) -> Line | None:
        peers = (x for x in self.lines if x.engine != LIMIT and not x.engine.startswith(OURS))
        return best(x for x in peers if key(x) == (work, adapters, streams))


def key(line: Line) -> tuple[str, int, int]:
    return line.work, line.adapters, line.streams


def best(lines: Iterable[Line]) -> Line | None:
    found = list(lines)
    if not found:
        return None
    return (min if found[0].unit == "ms" else max)(found, key=lambda each: each.value)


def rows(lines: Sequence[Line]) -> Iterator[Row]:
    have = Figures(lines)
    yield from mixed_rows(have)
    yield from decode_rows(have)
    yield from gpu_rows(have)
    base, lora = have.own("first"), have.own("first", LORA)
    yield row("first token, 400-token prompt", base, have.best_peer("first", 0, 1), at_most(1))
    yield row("first token with an adapter, against our base", lora, base, at_most(1.15))
    sixteen, thousand = have.own("many", LORA, LORA), have.own("many", 1000, LORA)
    yield row("1,000 registered adapters, 16 active", thousand, sixteen, at_least(0.95))
    yield from difference_rows(have)
    yield row("prefix hit, 1,500 tokens, over a miss", have.own("prefix hit"), have.own("prefix miss"), at_most(0.15))
    yield row("whole store, 64 streams", have.own("store", 0, 64, STORE), have.own("store", 0, 64), at_least(0.9))
    added, bytes_of = have.own("memory adapters", LORA), have.own("memory adapters' own")
    yield row("memory added by 16 adapters, against their bytes", added, bytes_of, at_most(1.3))


def mixed_rows(have: Figures) -> Iterator[Row]:
    alone, plain = have.own("mixed", 0, 1), have.own("mixed", 0, 1, engine=f"{OURS}, no guesses")
    yield row("mixed, base, 1 stream", alone, have.find("vLLM", "mixed", 0, 1), at_least(1.5))
    unguessed = best(x for x in (have.find(f"vLLM {mode}", "mixed", 0, 1) for mode in ("compile", "eager")) if x)
    yield row("mixed, base, 1 stream, without guesses", plain, unguessed, at_least(1.5))
    yield row("mixed, base, 1 stream", alone, have.find("llama.cpp", "mixed", 0, 1), at_least(0.95))
    for n, peer in ((16, 1.15), (64, 1.2)):
        ours = have.own("mixed", 0, n)
        yield row(f"mixed, base, {n} streams", ours, have.best_peer("mixed", 0, n), at_least(peer))
        yield row(f"mixed, base, {n} streams", ours, have.find(LIMIT, "mixed", 0, n), at_least(0.8))
    llama = have.find("llama.cpp", "mixed", LORA, 1)
    yield row("mixed, 16 adapters, 1 stream", have.own("mixed", LORA, 1), llama, at_least(1))
    for n, peer in ((16, 3.5), (64, 3.0)):
        ours = have.own("mixed", LORA, n)
        yield row(f"mixed, 16 adapters, {n} streams", ours, have.best_peer("mixed", LORA, n), at_least(peer))


def decode_rows(have: Figures) -> Iterator[Row]:
    for adapters, factor in ((0, 2.0), (LORA, 4.0)):
        for n in (16, 64):
            ours = have.own("decode", adapters, n)
            what = f"decode, {'16 adapters' if adapters else 'base'}, {n} streams"
            yield row(what, ours, have.find("vLLM", "decode", adapters, n), at_least(factor))
            if adapters:
                yield row(what, ours, have.find(LIMIT, "decode", adapters, n), at_least(0.6))


def gpu_rows(have: Figures) -> Iterator[Row]:
    """Where memory's own speed was measured, as `limits` does on a GPU."""
    if have.own("bandwidth", engine=LIMIT) is None:
        return
    for work in ("mixed", "decode"):
        for n in (16, 64):
            peer = have.find("transformers continuous", work, 0, n)
            yield row(f"{work}, base, {n} streams, on a GPU", have.own(work, 0, n), peer, at_least(3))
    floor = have.find(LIMIT, "decode", 0, 64)
    yield row("decode, base, 64 streams, against memory", have.own("decode", 0, 64), floor, at_least(0.6))


def difference_rows(have: Figures) -> Iterator[Row]:
    """Milliseconds more than the other figure, in place of a ratio."""
    wanted = (
        ("cold adapter to first token, ms over a warm one", have.own("cold"), have.own("warm"), 150.0),
        *(
            (f"store's first token when idle, {part}, ms over the bare engine", *pair(have, f"idle first {part}"), most)
            for part, most in (("p50", 8.0), ("p99", 25.0))
        ),
    )
    for what, ours, other, most in wanted:
        if ours is None or other is None:
            yield Row(what, told(ours), told(other), None, f"≤{most:g} ms", None)
        else:
            more = ours.value - other.value
            yield Row(what, told(ours), told(other), more, f"≤{most:g} ms", more <= most)


def pair(have: Figures, work: str) -> tuple[Line | None, Line | None]:
    return have.own(work, engine=STORE), have.own(work)


Bar = tuple[str, Callable[[float], bool]]


def at_least(factor: float) -> Bar:
    return f"≥{factor:g}×", lambda ratio: ratio >= factor


def at_most(factor: float) -> Bar:
    return f"≤{factor:g}×", lambda ratio: ratio <= factor


def row(work: str, ours: Line | None, other: Line | None, bar: Bar) -> Row:
    if ours is None or other is None or not other.value:
        return Row(work, told(ours), told(other), None, bar[0], None)
    ratio = ours.value / other.value
    return Row(work, told(ours), told(other), ratio, bar[0], bar[1](ratio))


def told(line: Line | None) -> str:
    if line is None:
        return "not measured"
    digits = 0 if line.value >= 100 else 1
    name = "" if line.engine.startswith(OURS) else f" ({line.engine})"
    return f"{line.value:.{digits}f} {line.unit}{name}"
