"""The full report of a file: every check over every row, what it found and what it cost."""

import time
from typing import Any

from workers.datasets.checks import Check, make
from workers.datasets.child import Work
from workers.datasets.findings import Findings, count_lines, good_rows
from workers.datasets.leakage import Leakage


def report(work: Work) -> dict[str, Any]:
    """`options.checks` names the checks. Seconds include imports."""
    total = count_lines(work.source)
    seconds: dict[str, float] = {}
    checks: dict[str, Check] = {}
    for name in list(work.options["checks"]):  # type: ignore[arg-type]
        started = time.perf_counter()
        checks[str(name)] = make(str(name), total, every_row=False)
        seconds[str(name)] = time.perf_counter() - started
    if work.against is not None:
        started = time.perf_counter()
        checks["leakage"] = Leakage(good_rows(work.against), count_lines(work.against))
        seconds["leakage"] = time.perf_counter() - started
    findings, rows, characters = Findings(), 0, 0
    for numbered in good_rows(work.source):
        rows += 1
        characters += len(numbered.text)
        for name, check in checks.items():
            started = time.perf_counter()
            codes = check.codes(numbered)
            seconds[name] += time.perf_counter() - started
            findings.add(numbered.line, codes)
    return {
        "rows": rows,
        "characters": characters,
        "findings": findings.without_usual_language().as_json(),
        "checks": {name: check.summary() for name, check in checks.items()},
        "seconds": {name: round(spent, 2) for name, spent in seconds.items()},
    }
