"""The device that a worker trains on and how much memory it has, found out without torch."""

import os
import shutil
import subprocess
from pathlib import Path

import structlog

from app.settings import FineTuningSettings

log = structlog.get_logger(__name__)

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
MEGABYTE = 1024 * 1024


def device_of(settings: FineTuningSettings) -> str:
    """`auto` is a GPU where the driver shows one."""
    if settings.device != "auto":
        return settings.device
    return "cuda" if gpu_memory() else "cpu"


def memory_of(settings: FineTuningSettings) -> int:
    """Bytes that jobs of this worker may take together: as set, else all that its devices have."""
    if settings.memory_bytes:
        return settings.memory_bytes
    return gpu_memory() * settings.devices if device_of(settings) == "cuda" else machine_memory()


def gpu_memory() -> int:
    """Of the first GPU that this process may use; 0 without one."""
    if shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return 0
    which = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", f"--id={which}"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        return int(done.stdout.split()[0]) * MEGABYTE
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        log.warning("gpu_not_readable", error=str(error))
        return 0


def machine_memory() -> int:
    """What this machine, or the container around this process, has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = CGROUP_LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
