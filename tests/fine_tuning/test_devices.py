"""Several processes learn what one learns (gloo; whole models sharded by FSDP), and live and die as one."""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.fine_tuning.recipe import BATCH, Told, chat, run, write
from tests.tiny_base import tiny_base
from workers.fine_tuning.child import Child
from workers.fine_tuning.spec import JobSpec, Report
from workers.fine_tuning.trouble import Ending

# 11 rows in steps of 4: the last has 3 for 2 devices, and parts of 64 tokens are of unequal number.
ROWS = [chat(f"What is number {n}?", f"Number {n} is " + "one more " * (n % 3) + "done.") for n in range(11)]
TERMS: dict[str, Any] = {"batch_size": 4, "n_epochs": 3, "pack_tokens": 64, "keep": "best"}
TEXTS = [{"text": f"the quick brown fox number {n} jumps over the lazy dog. " * 4} for n in range(11)]
GPT2 = {"architecture": "gpt2", "layers": 2, "width": 32, "heads": 2, "context": 64, "vocabulary": 300}
WHOLE: dict[str, Any] = {"settings": GPT2, "peak_rate": 1e-2}
# Sums of 32-bit numbers in another order move the last digits of a loss near 5, and Adam the next: seen, up to 6e-5.
ROUNDING = 2e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("devices-base"))


Watch = Callable[[Child, Report], None]


def spread(
    base: Path, work: Path, method: str, rows: Sequence[Any], devices: int, watch: Watch | None = None, **more: Any
) -> tuple[list[Report], Ending]:
    """A run in processes of its own, a checkpoint after each step; `watch` sees each report as it comes."""
    files = {"training": write(work / "training.jsonl", rows), "validation": write(work / "held_out.jsonl", rows[:3])}
    given = BATCH | TERMS | {"seed": 3, "threads": 1, "dtype": "fp32", "seconds_between_checkpoints": 0} | files | more
    child = Child(
        JobSpec.model_validate({"base": str(base), "work": str(work), "method": method, "devices": devices, **given})
    )
    reports = []
    try:
        for report in child.reports():
            reports.append(report)
            if watch:
                watch(child, report)
        return reports, child.end()
    finally:
        child.close()


def losses(reports: Sequence[Report]) -> list[float]:
    return [report.data["loss"] for report in reports if report.event == "step"]


def assert_same_result(found: dict[str, Any], told: Told, weights: str) -> None:
    for name, value in told.done["metrics"].items():
        assert found["metrics"][name] == pytest.approx(value, rel=1e-4), name
    ours, theirs = (load_file(Path(each["folder"]) / weights) for each in (found, told.done))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=1e-3)


def test_two_devices_that_share_a_whole_model_learn_what_one_learns(folder: Path, tmp_path: Path) -> None:
    work = tmp_path / "two"
    work.mkdir()
    reports, ending = spread(folder, work, "pretraining", TEXTS, 2, **WHOLE)
    assert ending.code == 0, ending
    alone = run(folder, tmp_path / "one", "pretraining", TEXTS, held_out=TEXTS[:3], **TERMS, **WHOLE)
    assert losses(reports) == pytest.approx(alone.losses, abs=ROUNDING)
    assert alone.losses[-1] < alone.losses[0] - 2
    assert_same_result(reports[-1].data, alone, "model.safetensors")
    epochs = [report.data for report in reports if report.event == "epoch"]
    assert [each["step"] for each in epochs] == [each["step"] for each in alone.all("epoch")] != []
    for ours, theirs in zip(epochs, alone.all("epoch"), strict=True):
        assert ours["facts"] == theirs["facts"]
        found, wanted = (load_file(Path(each["folder"]) / "model.safetensors") for each in (ours, theirs))
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3)
    # The last checkpoint that two devices wrote is one that a single device goes on from.
    last = run(folder, work, "pretraining", TEXTS, held_out=TEXTS[:3], **TERMS, **WHOLE)
    assert last.all("begin")[0]["step"] == len(alone.losses) - 1
    assert_same_result(reports[-1].data, last, "model.safetensors")


def test_a_killed_device_ends_all_and_one_goes_on_to_the_adapter_of_one(folder: Path, tmp_path: Path) -> None:
    work, processes = tmp_path / "work", list[psutil.Process]()
    work.mkdir()
    killed, ending = spread(folder, work, "supervised", ROWS, 2, killer_of_the_last(processes))
    assert ending == Ending(-signal.SIGKILL, last=ending.last, kernel_killed=ending.kernel_killed)
    assert len(processes) == 1
    assert psutil.wait_procs(processes, timeout=20)[1] == []
    ended = run(folder, work, "supervised", ROWS, held_out=ROWS[:3], **TERMS)
    first = ended.all("begin")[0]["step"]
    assert first >= 1
    alone = run(folder, tmp_path / "one", "supervised", ROWS, held_out=ROWS[:3], **TERMS)
    assert losses(killed)[:first] + ended.losses == pytest.approx(alone.losses, abs=ROUNDING)
    assert_same_result(ended.done, alone, "adapter_model.safetensors")


def killer_of_the_last(processes: list[psutil.Process]) -> Watch:
    """At the first checkpoint it ends one of the devices; `processes` then are all but the first."""

    def kill(child: Child, report: Report) -> None:
        if report.event == "saved" and not processes:
            processes.extend(psutil.Process(child.pid).children())
            processes[-1].kill()

    return kill
