"""Is the process up, can it work, and what does it count: /healthz, /readyz, /metrics."""

import json
from collections import Counter
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from app.database import engine
from app.metrics import exposition
from app.valkey import connect

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers; nothing else is asked."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz() -> Response:
    """200 when Postgres answers. Valkey and the workers are reported, never required: browsing goes on without."""
    postgres = postgres_answers()
    valkey, workers = living_workers()
    body = {"status": "ready" if postgres else "unavailable", "postgres": postgres, "valkey": valkey}
    return JSONResponse(body | {"workers": workers}, 200 if postgres else 503)


@router.get("/metrics")
def metrics() -> Response:
    """Of this process, and what the living workers say of themselves."""
    return Response(exposition(signs_of_life() or []), media_type=CONTENT_TYPE_LATEST)


def postgres_answers() -> bool:
    try:
        with engine().connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return False
    return True


def living_workers() -> tuple[bool, list[dict[str, object]]]:
    """Does Valkey answer, and how many workers of each kind and base live."""
    signs = signs_of_life()
    counts = Counter((sign["kind"], sign["base"]) for sign in signs or [])
    workers = [{"kind": kind, "base": base, "count": count} for (kind, base), count in sorted(counts.items())]
    return signs is not None, workers


def signs_of_life() -> list[dict[str, Any]] | None:
    """What each living worker last said in Valkey (workers/liveness.py); None when Valkey does not answer."""
    try:
        with connect() as valkey:
            keys = list(valkey.scan_iter("worker:*", count=100))
            return [json.loads(value) for value in (valkey.mget(keys) if keys else []) if value]
    except RedisError:
        return None
