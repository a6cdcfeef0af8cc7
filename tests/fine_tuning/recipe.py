"""A recipe run in this process: its parent's end of the pipe is a list."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workers.fine_tuning.recipes.process import Parent
from workers.fine_tuning.spec import STOP, JobSpec, Report

BATCH = {"n_epochs": 1, "batch_size": 2, "learning_rate_multiplier": 1.0, "rank": 4, "context_length": 512}


class Told(Parent):
    """`stop_after`: asks the recipe to stop once it has told of so many steps; `stop_at`: the so many-th time that it
    would obey, whatever it does then.
    """

    def __init__(self, spec: JobSpec, stop_after: int | None = None, stop_at: int | None = None) -> None:
        self.spec, self.asked, self.stop_after, self.stop_at = spec, None, stop_after, stop_at
        self.reports: list[tuple[str, dict[str, Any]]] = []

    def give_way(self) -> None:
        """Nobody else needs this machine."""

    def hold_on(self) -> None:
        """Nothing listens beside the recipe."""

    def ends(self) -> bool:
        if self.stop_at is not None:
            self.stop_at -= 1
            self.asked = self.asked if self.stop_at else STOP
        return super().ends()

    def tell(self, event: Any, **data: Any) -> None:
        self.reports.append((event, json.loads(json.dumps(data))))
        if self.stop_after is not None and len(self.all("step")) >= self.stop_after:
            self.asked = STOP

    def all(self, event: str) -> list[dict[str, Any]]:
        return [data for name, data in self.reports if name == event]

    @property
    def done(self) -> dict[str, Any]:
        return self.all("done")[0]

    @property
    def losses(self) -> list[float]:
        return [step["loss"] for step in self.all("step")]


class Process:
    """A recipe of a few lines in a process of its own, as the supervising task has it."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child

    def say(self, word: str) -> None:
        assert self.child.stdin
        self.child.stdin.write(f"{word}\n")

    def hear(self) -> Report:
        assert self.child.stdout
        return Report.model_validate_json(self.child.stdout.readline())


@contextmanager
def process(code: str, **more: Any) -> Iterator[Process]:
    """`more` goes into the spec."""
    files = {"base": "", "training": "", "work": "", "seed": 1}
    spec = JobSpec.model_validate({**BATCH, **files, **more})
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
        started = Process(child)
        started.say(spec.model_dump_json())
        yield started


def recipe_of(method: str) -> Callable[[Parent], None]:
    recipe: Callable[[Parent], None] = getattr(importlib.import_module(f"workers.fine_tuning.recipes.{method}"), method)
    return recipe


def run(base: Path, work: Path, method: str, training: Sequence[Any], **more: Any) -> Told:
    """Runs it to its end; `held_out`: rows, `stop_after`: steps; the rest goes into the spec."""
    work.mkdir(exist_ok=True)
    stop_after, stop_at, held_out = more.pop("stop_after", None), more.pop("stop_at", None), more.pop("held_out", None)
    files = {"training": write(work / "training.jsonl", training)}
    if held_out is not None:
        files["validation"] = write(work / "held_out.jsonl", held_out)
    given = {**BATCH, "seed": 3, "threads": 1, "dtype": "fp32", "seconds_between_checkpoints": 3600, **files, **more}
    spec = JobSpec.model_validate({"base": str(base), "work": str(work), "method": method, **given})
    told = Told(spec, stop_after, stop_at)
    recipe_of(method)(told)
    return told


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns} | more


def preference(question: str, preferred: str, other: str) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": question}]},
        "preferred_output": [{"role": "assistant", "content": preferred}],
        "non_preferred_output": [{"role": "assistant", "content": other}],
    }
