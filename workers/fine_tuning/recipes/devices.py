"""One job on several devices: a process for each, all running one recipe on their own rows of every step.

The task starts the first, which leads: it hears orders, reports and writes. It starts the others and ends as one of
them ends before its time; they end with it. So for the task a job stays one process. accelerate chooses device and
backend of each (nccl, gloo); rows, sums and orders are shared here. With one device all of this does nothing,
and accelerate, a second's work to import, is left out.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from torch import Tensor, cuda, distributed, get_num_threads, set_num_threads

from workers.fine_tuning.spec import JobSpec

T = TypeVar("T")
# A device that is gone is noticed by its process's end. The others may wait long for a job that gives way.
PATIENCE = timedelta(days=1)


def join(spec: JobSpec) -> None:
    """Start the others, if this is the first, and meet them: a file in the job's own folder tells who listens where."""
    from accelerate import PartialState

    if spec.number == 0:
        handle, meeting = tempfile.mkstemp(prefix="meeting-", dir=spec.work)
        os.close(handle)
        spec = spec.model_copy(update={"meeting": meeting, "nice": 0})
        for each in range(1, spec.devices):
            start(spec.model_copy(update={"number": each}))
    threads = spec.threads or max(1, get_num_threads() // spec.devices)
    set_num_threads(threads)
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    ranks = {"RANK": spec.number, "LOCAL_RANK": spec.number, "OMP_NUM_THREADS": threads}
    ranks |= {"WORLD_SIZE": spec.devices, "LOCAL_WORLD_SIZE": spec.devices}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    place = {"rank": spec.number, "world_size": spec.devices, "init_method": f"file://{spec.meeting}"}
    PartialState(cpu=spec.device == "cpu" or not cuda.is_available(), timeout=PATIENCE, **place)


def start(spec: JobSpec) -> None:
    """The process of another device. The kernel, and the end of its stdin, end it with this one."""
    command = [sys.executable, "-m", f"workers.fine_tuning.recipes.{spec.method}"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    if process.stdin is not None:
        process.stdin.write(spec.model_dump_json() + "\n")
        process.stdin.flush()
    threading.Thread(target=end_with, args=(process,), name=f"device-{spec.number}", daemon=True).start()


def end_with(process: subprocess.Popen[str]) -> None:
    """When it breaks, break in the same way."""
    code = process.wait()
    if code < 0:
        os.kill(os.getpid(), signal.Signals(-code))
    if code:
        os._exit(1)


def count() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def number() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def leads() -> bool:
    return number() == 0


def own_folder(work: Path) -> Path:
    """For what each device writes for itself: the first in `work`."""
    return work if leads() else work / f"device-{number()}"


def leaders(value: T) -> T:
    """What the first device holds, for all of them."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    found: list[T] = broadcast_object_list([value])
    return found[0]


def everyones(values: list[T]) -> list[T]:
    """The lists of all devices, end to end."""
    if count() == 1:
        return values
    from accelerate.utils import gather_object

    found: list[T] = gather_object(values)
    return found


def total(sums: Counter[str]) -> Counter[str]:
    """The sums of all devices, added in one order."""
    together: Counter[str] = Counter()
    for each in everyones([sums]):
        together.update(each)
    return together


def add_up(tensor: Tensor) -> Tensor:
    """In place: the sum over all devices."""
    if count() > 1:
        distributed.all_reduce(tensor)
    return tensor


@contextmanager
def first_alone() -> Iterator[None]:
    """The first device goes ahead; the others find what it wrote."""
    if count() == 1:
        yield
    else:
        from accelerate import PartialState

        with PartialState().main_process_first():
            yield
