"""`gptstore worker bases`: serves every base that has no generation worker of its own, with a few workers in turn.

Bases that training made are many and seldom called: each gets a process when somebody calls it, which gives all its
memory back when it ends.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import redis
import structlog
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.billing.tables import Generation
from app.database import transaction
from app.local.services import die_with_parent, end_after_parent
from app.settings import get_settings
from app.tasks import generation_queue
from app.valkey import connect
from app.variants.tables import BaseModel
from workers.bases.roster import Roster
from workers.liveness import Liveness

log = structlog.get_logger(__name__)

PERIOD = 0.5
STOP_SECONDS = 20.0


def main() -> None:
    """Serve until SIGTERM; running calls finish first."""
    end_after_parent()
    settings = get_settings().generation
    stopping = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stopping.set())
    valkey = connect(2.0)
    roster = Roster(start_worker, settings.other_bases, settings.other_bases_idle)
    liveness = Liveness("bases")
    liveness.start()
    print("ready bases", flush=True)
    while not stopping.wait(PERIOD):
        try:
            roster.tend(asked(valkey, roster.bases))
        except (redis.RedisError, SQLAlchemyError) as error:
            log.warning("bases_not_seen", error=str(error))
    liveness.stop()
    for process in roster.stop():
        process.wait(STOP_SECONDS)


def asked(valkey: redis.Redis, ours: frozenset[str]) -> list[str]:
    """Bases with a queue or open calls, but for those that somebody else's worker serves."""
    with transaction() as tx:
        known = list(tx.scalars(select(BaseModel.id).where(BaseModel.status == "ready").order_by(BaseModel.id)))
        calling = set(tx.scalars(select(Generation.base_id).where(Generation.state == "held").distinct()))
    with valkey.pipeline(transaction=False) as questions:  # one round trip, however many bases there are
        for base in known:
            questions.exists(generation_queue(base))
        queued = {base for base, found in zip(known, questions.execute(), strict=True) if found}
    elsewhere = {base for base in served(valkey) if base not in ours} | {get_settings().generation.base}
    return [base for base in known if base in calling | queued and base not in elsewhere]


def served(valkey: redis.Redis) -> Iterator[str]:
    """Bases of all living generation workers."""
    for key in valkey.scan_iter("worker:generation:*"):
        if (raw := valkey.get(key)) is not None:
            yield json.loads(raw)["base"]


def start_worker(base_id: str) -> subprocess.Popen[bytes]:
    """`gptstore worker generation` for that base; it ends with this process."""
    log.info("base_asked_for", base=base_id)
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli.main", "worker", "generation"],
        env=os.environ | {"GPTSTORE_GENERATION__BASE": base_id},
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )


if __name__ == "__main__":
    main()
