"""The machine in words: what a reader needs to judge the figures; no names, no addresses, no paths."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")


def describe() -> dict[str, str]:
    information = dict(cpu_fields())
    flags = set(information.get("flags", information.get("Features", "")).split())
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    return {
        "CPU": information.get("model name", platform.machine()),
        "cores": str(len(os.sched_getaffinity(0))),
        "flags": " ".join(flag for flag in TELLING_FLAGS if flag in flags),
        "memory": f"{page * pages / 1024**3:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
        **({"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def cpu_fields() -> Iterator[tuple[str, str]]:
    """Of the first processor."""
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if not text.strip():
            return
        name, _, value = text.partition(":")
        yield name.strip(), value.strip()
