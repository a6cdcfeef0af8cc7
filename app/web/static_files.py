"""Style and scripts under an address that names their content, so that browsers may keep them for ever."""

import hashlib
from functools import lru_cache
from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "static"
FOR_EVER = "public, max-age=31536000, immutable"


@lru_cache
def digest() -> str:
    """Of all files together: modules import each other by relative addresses, so they change together."""
    sha = hashlib.sha256()
    for path in sorted(FOLDER.iterdir()):
        sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()[:16]


def static_url(name: str) -> str:
    return f"/static/{digest()}/{name}"


class HashedFiles(StaticFiles):
    """`/static/<digest>/<name>`. A page of another release still gets today's file, but may not keep it."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        wanted, _, name = path.partition("/")
        response = await super().get_response(name, scope)
        response.headers["cache-control"] = FOR_EVER if wanted == digest() else "no-cache"
        response.headers["x-content-type-options"] = "nosniff"
        return response
