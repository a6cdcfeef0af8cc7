"""What outlives a killed supervisor of an embedded store is cut off."""

import os
import subprocess
import sys

import psutil

PART = """
import signal, time
from app.local.services import end_after_parent
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end_after_parent(grace=0.5)
print("ready", flush=True)
time.sleep(120)
"""
SUPERVISOR = """
import subprocess, sys, time
part = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
part.stdout.readline()
print(part.pid, flush=True)
time.sleep(120)
"""


def test_a_part_that_hears_no_signal_ends_soon_after_its_killed_supervisor() -> None:
    environment = os.environ | {"GPTSTORE_EMBEDDED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, PART], stdout=subprocess.PIPE, text=True, env=environment
    ) as supervisor:
        assert supervisor.stdout is not None
        part = psutil.Process(int(supervisor.stdout.readline()))
        supervisor.kill()
    assert not psutil.wait_procs([part], timeout=30)[1]
