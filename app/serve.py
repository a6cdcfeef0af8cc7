"""Uvicorn with the store's settings; prints `ready api` once the port is open."""

import gc
import socket

import uvicorn

from app.local.services import end_after_parent
from app.main import create_app
from app.settings import get_settings


class AnnouncingServer(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            gc.collect()
            gc.freeze()  # what lives as long as the process is not looked through again and again
            print("ready api", flush=True)


def serve() -> None:
    """Until SIGTERM; open answers get a few seconds to finish."""
    end_after_parent()
    settings = get_settings().api
    config = uvicorn.Config(
        create_app(),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        # Longer than clients keep theirs (httpx: 5 s): who closes first must not be in the midst of a request.
        timeout_keep_alive=65,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    AnnouncingServer(config).run()
