"""Clients of Valkey that give up soon: what lies there can be lost, so nobody waits long for it.

redis-py would by itself try each command up to ten times more, each as long.
"""

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.settings import get_settings


def connect(seconds: float = 1.0, url: str = "") -> redis.Redis:
    """`seconds`: the longest wait for a connection and for an answer. `url`: the store's Valkey unless named."""
    once = Retry(NoBackoff(), 0)
    return redis.Redis.from_url(
        url or get_settings().redis_url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=once
    )


def connect_async(seconds: float) -> redis.asyncio.Redis:
    """As `connect`; a command that blocks must do so for less than `seconds`."""
    url, once = get_settings().redis_url, AsyncRetry(NoBackoff(), 0)
    return redis.asyncio.Redis.from_url(url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=once)
