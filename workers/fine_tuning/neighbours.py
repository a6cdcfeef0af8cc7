"""Whether generation needs the machine that this worker trains on."""

import json
import socket

import redis

from app.valkey import connect


def generation_is_busy() -> bool:
    """A generation worker of this machine has calls under way, as its sign of life says. Without Valkey: no."""
    try:
        with connect() as valkey:
            keys = list(valkey.scan_iter("worker:generation:*", count=100))
            signs = [json.loads(value) for value in (valkey.mget(keys) if keys else []) if value]
    except redis.RedisError:
        return False
    here = socket.gethostname()
    return any(
        sign.get("host") == here and sign["figures"].get("running", 0) + sign["figures"].get("waiting", 0) > 0
        for sign in signs
    )
