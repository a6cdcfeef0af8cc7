"""What becomes of a job whose training process broke: tried again, tried smaller, put aside, or given up."""

import errno
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

log = structlog.get_logger(__name__)

VMSTAT = Path("/proc/vmstat")
Fate = Literal["again", "smaller", "rest", "give_up"]


@dataclass(frozen=True)
class Ending:
    """How a process ended. `code` as Popen has it, `told` what it said of itself (recipes/process.py), `last` its
    last words; `kernel_killed`: the kernel has killed some process for want of memory meanwhile.
    """

    code: int
    told: str | None = None
    last: str = ""
    kernel_killed: bool = False

    @property
    def killed(self) -> bool:
        """By SIGKILL, which a shell shows as 137."""
        return self.code in (-signal.SIGKILL, 128 + signal.SIGKILL)

    @property
    def out_of_memory(self) -> bool:
        return self.told == "out_of_memory" or (self.killed and self.kernel_killed)

    def __str__(self) -> str:
        if self.out_of_memory:
            return "out of memory (137)" if self.killed else "out of memory"
        if self.killed:
            return "killed by SIGKILL (137), as happens when a machine runs out of memory"
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        return f"exit code {self.code}" + (f": {self.last}" if self.code and self.last else "")


def fate(ending: Ending, tried_smaller: bool) -> Fate:
    """A full disk is for an operator to mend; without enough memory smaller micro-batches are tried once."""
    if ending.told == "disk_full":
        return "rest"
    if ending.out_of_memory:
        return "give_up" if tried_smaller else "smaller"
    return "again"


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def kernel_memory_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        rows = (line.split() for line in VMSTAT.read_text().splitlines())
        return next((int(row[1]) for row in rows if row[0] == "oom_kill"), 0)
    except OSError:
        return 0


def peak_memory(pid: int) -> int:
    """The most bytes that a living process and each of its children held at once; 0 where the kernel does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        children = [each for path in Path(f"/proc/{pid}/task").glob("*/children") for each in path.read_text().split()]
    except OSError:
        return 0
    own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
    return own + sum(peak_memory(int(child)) for child in children)
