"""What a recipe's process shares with its parent: how it lives, what it hears, what it says."""

import ctypes
import errno
import os
import signal
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any

from workers.fine_tuning.spec import BUSY, CANCEL, IDLE, JobSpec, Report

PR_SET_PDEATHSIG = 1
# With several devices, an error may only be the echo of another's end: that end, noticed meanwhile, is then the cause.
ECHO = 1.0
# Libraries wrap the system's errors in their own: what they say of a full disk and of missing memory.
DISK_FULL = ("no space left on device", "os error 28", "disk quota exceeded")
MEMORY_GONE = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


class Interrupted(Exception):
    """The parent asked to stop: keep what was done, and end."""


class Parent:
    """The supervising task at the other end of stdin and stdout.

    `asked`: `cancel` or `stop` once the parent wrote it. While all that this process did lies on the disk or is not
    worth keeping, an order ends it at once, whatever it computes; so does `cancel` at any time. After `hold_on` a
    `stop` waits until `ends` is asked. An error that ends this process is told as `broken`. When stdin ends, the parent
    is gone: so is this process.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._busy, self._holding_on = False, False
        self._heard, self._telling = threading.Condition(), threading.Lock()
        die_with_parent()
        self.spec = JobSpec.model_validate_json(sys.stdin.readline())
        os.nice(self.spec.nice)
        sys.excepthook = self._tell_broken
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def give_way(self) -> None:
        """Between two steps: wait, as long as the spec allows, while generation needs this machine."""
        with self._heard:
            self._heard.wait_for(lambda: self.asked or not self._busy, self.spec.yield_to_generation)

    def hold_on(self) -> None:
        """From here on there is something to save before this process ends."""
        with self._heard:
            self._holding_on = True

    def ends(self) -> bool:
        """Whether to end now: to be asked wherever what was done so far can be saved."""
        return self.asked is not None

    def _listen(self) -> None:
        for line in sys.stdin:
            with self._heard:
                word = line.strip()
                if word in (BUSY, IDLE):
                    self._busy = word == BUSY
                else:
                    self.asked = word
                    if word == CANCEL or not self._holding_on:
                        self.tell("stopped")
                        os._exit(0)
                self._heard.notify_all()
        os._exit(1)

    def tell(self, event: Any, **data: Any) -> None:
        """Of several devices only the first speaks."""
        if self.spec.number == 0:
            self._say(event, data)

    def _say(self, event: Any, data: dict[str, Any]) -> None:
        with self._telling:
            print(Report(event=event, data=data).model_dump_json(), flush=True)

    def _tell_broken(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        traceback.print_exception(kind, error, trace)
        if self.spec.devices > 1:
            time.sleep(ECHO)
        self._say("broken", {"code": trouble_of(error), "message": f"{kind.__name__}: {error}"[:300]})


def trouble_of(error: BaseException) -> str:
    """`disk_full`, `out_of_memory` or `crashed`."""
    text = str(error).lower()
    if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or any(
        each in text for each in DISK_FULL
    ):
        return "disk_full"
    if isinstance(error, MemoryError) or any(each in text for each in MEMORY_GONE):
        return "out_of_memory"
    return "crashed"


def die_with_parent() -> None:
    """On Linux the kernel kills us when the task's thread ends, however it ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
