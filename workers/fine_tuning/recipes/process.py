"""What a recipe's process shares with its parent: how it lives, what it hears, what it says."""

import ctypes
import os
import signal
import sys
import threading
from typing import Any

from workers.fine_tuning.spec import JobSpec, Report

PR_SET_PDEATHSIG = 1


class Parent:
    """The supervising task at the other end of stdin and stdout.

    `asked`: `cancel` or `stop` once the parent wrote it. When stdin ends, the parent is gone: so is this process.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        die_with_parent()
        self.spec = JobSpec.model_validate_json(sys.stdin.readline())
        os.nice(self.spec.nice)
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            self.asked = line.strip()
        os._exit(1)

    def tell(self, event: Any, **data: Any) -> None:
        print(Report(event=event, data=data).model_dump_json(), flush=True)


def die_with_parent() -> None:
    """On Linux the kernel kills us when the task's thread ends, however it ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
