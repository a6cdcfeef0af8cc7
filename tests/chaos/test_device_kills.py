"""A job on three devices, one of which is killed, then on two that are told to stop, ends as on one left in peace."""

import signal
from pathlib import Path

import psutil
import pytest

from tests.fine_tuning.recipe import run
from tests.fine_tuning.test_devices import (
    ROUNDING,
    ROWS,
    TERMS,
    assert_same_result,
    killer_of_the_last,
    losses,
    spread,
)
from tests.tiny_base import tiny_base
from workers.fine_tuning.child import Child
from workers.fine_tuning.spec import STOP, Report
from workers.fine_tuning.trouble import Ending


def test_devices_that_die_and_stop_leave_a_job_that_ends_in_the_adapter_of_one(tmp_path: Path) -> None:
    folder, work, processes = tiny_base(tmp_path / "base"), tmp_path / "work", list[psutil.Process]()
    work.mkdir()

    def stop(child: Child, report: Report) -> None:
        if report.event == "step" and report.data["step"] >= 5:
            child.order(STOP)

    killed, ending = spread(folder, work, "supervised", ROWS, 3, killer_of_the_last(processes))
    assert ending == Ending(-signal.SIGKILL, last=ending.last, kernel_killed=ending.kernel_killed)
    assert len(processes) == 2
    assert psutil.wait_procs(processes, timeout=20)[1] == []
    stopped, ending = spread(folder, work, "supervised", ROWS, 2, stop)
    assert (stopped[-1].event, ending.code) == ("stopped", 0)
    first = stopped[0].data["step"]
    assert first >= 1
    ended = run(folder, work, "supervised", ROWS, held_out=ROWS[:3], **TERMS)
    alone = run(folder, tmp_path / "one", "supervised", ROWS, held_out=ROWS[:3], **TERMS)
    curve = losses(killed)[:first] + losses(stopped) + ended.losses
    assert curve == pytest.approx(alone.losses, abs=ROUNDING)
    assert_same_result(ended.done, alone, "adapter_model.safetensors")
