"""`gptstore up`: the whole store on one machine, from embedded services to workers, until Ctrl-C."""

import json
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

from sqlalchemy import select

from app.local.migrate import migrate
from app.local.services import ServiceError, own_data_directory, start_postgres, start_valkey
from app.local.supervisor import Journal, Supervisor, process_part, service_part
from app.settings import get_settings

# What operator commands in another terminal need to reach this store.
ENVIRONMENT_FILE = "environment.json"


def default_data_directory() -> Path:
    """Root's store lies where Postgres's unprivileged user can reach it; a user's in their own home."""
    if os.getuid() == 0:
        return Path("/var/lib/gptstore")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "gptstore"


def up(port: int, data: Path, demo: bool) -> int:
    """Serve until a signal; returns the exit code. Raises ServiceError when the store cannot start."""
    data = data.resolve()
    check_port(port)
    with own_data_directory(data):
        journal = Journal(data / "logs")
        supervisor = Supervisor(journal)
        supervisor.stop_on_signals()
        try:
            return run(supervisor, journal, port, data, demo)
        finally:
            journal.say("stopping …")
            supervisor.stop()


def check_port(port: int) -> None:
    """Before minutes are spent on what the API could not serve. Raises ServiceError."""
    host = get_settings().api.host
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceError(f"port {port} cannot be used ({error.strerror}); choose another --port") from error


def run(supervisor: Supervisor, journal: Journal, port: int, data: Path, demo: bool) -> int:
    journal.quiet = demo
    journal.say(f"data in {data}")
    postgres = supervisor.launch(service_part("postgres", lambda log: start_postgres(data, log), journal))
    valkey = supervisor.launch(service_part("valkey", lambda log: start_valkey(data, log), journal))
    environment = embedded_environment(data, port, postgres.url, valkey.url)
    os.environ.update(environment)
    get_settings.cache_clear()
    write_privately(data / ENVIRONMENT_FILE, json.dumps(environment))
    migrate()
    journal.say("postgres, valkey and the schema are ready; starting the workers …")
    parts = [
        process_part("fine-tuning", ["worker", "fine-tuning"], environment, journal),
        process_part("generation", ["worker", "generation"], environment, journal),
        process_part("bases", ["worker", "bases"], environment, journal),
        process_part("upkeep", ["upkeep"], environment, journal),
        process_part("api", ["api"], environment, journal),
    ]
    for part in parts:
        supervisor.launch(part)
    if import_default_base():
        journal.say(f"importing {get_settings().base.default_id} (once) …")
    if not supervisor.wait_ready(parts):
        return 0
    url = f"http://127.0.0.1:{port}"
    journal.say(f"ready {url}")
    if demo and not play_demo(supervisor, url, data):
        journal.say("the demo ended with an error; the store stays open")
    journal.quiet = False
    supervisor.watch()
    return 0


def embedded_environment(data: Path, port: int, postgres_url: str, valkey_url: str) -> dict[str, str]:
    """What the parts need to find each other; an operator's own variables win where they make sense."""
    return {
        "GPTSTORE_DATABASE_URL": postgres_url,
        "GPTSTORE_REDIS_URL": valkey_url,
        "GPTSTORE_ARTIFACTS_URL": f"file://{data / 'artifacts'}",
        "GPTSTORE_SECRET_KEY": secret_key(data),
        "GPTSTORE_EMBEDDED": "1",
        "GPTSTORE_API__PORT": str(port),
        "GPTSTORE_FINE_TUNING__WORK_DIR": str(data / "work"),
        "HF_HUB_OFFLINE": "1",
    }


def secret_key(data: Path) -> str:
    """Made once per store, readable by its owner only."""
    path = data / "secret_key"
    if not path.exists():
        write_privately(path, secrets.token_hex(32))
    return path.read_text().strip()


def write_privately(path: Path, text: str) -> None:
    """Whole or not at all, and readable by its owner only."""
    temporary = path.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    temporary.rename(path)


def import_default_base() -> bool:
    """Ask for the default base unless it is there; True when it has to be imported."""
    from app.database import transaction
    from app.variants.bases import start_import
    from app.variants.tables import BaseModel

    settings = get_settings().base
    with transaction() as tx:
        if tx.scalar(select(BaseModel.status).where(BaseModel.id == settings.default_id)) == "ready":
            return False
        start_import(tx, settings.default_id, settings.default_source)
    return True


def play_demo(supervisor: Supervisor, url: str, data: Path) -> bool:
    """Play the main job in a process of its own while the parts are tended; once per store."""
    command = [sys.executable, "-m", "app.cli.main", "demo", "--url", url, "--remember", str(data / "demo.json")]
    playing = subprocess.Popen(command, env=os.environ)
    while playing.poll() is None:
        supervisor.tend()
        if supervisor.stopping.wait(0.2):
            playing.terminate()
            playing.wait()
            return True
    return playing.returncode == 0
