"""One process, uvicorn, no Ray: `attend serve --standalone`.

Separate from the app because stopping well is a server's business: the first signal drains, the second stops at once.
"""

import asyncio
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.app import Runtime, build_app
from service.ports import check_port
from service.settings import Settings

DRAIN_POLL_S = 0.05


def serve_standalone(settings: Settings) -> int:
    """Serve until a signal; returns the process's exit status.

    Raises:
        ServeError: the port cannot be used.
        BundleError, DecoderError: the model cannot be served.
    """
    check_port(settings.host, settings.port)
    app = build_app(settings)
    server = _DrainingServer(app, settings)
    server.run()
    return 0 if server.started else 1


class _DrainingServer(uvicorn.Server):
    """A uvicorn server that keeps answering while it drains: new requests get 503, running ones finish."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        config = uvicorn.Config(
            app, settings.host, settings.port, log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
        super().__init__(config)
        self._runtime: Runtime = app.state.runtime
        self._settings = settings
        self._is_draining = False
        self._drain_task: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, then say so in one line."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            print(f"attend: ready at http://{self._settings.host}:{self._settings.port} (standalone)", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain, then stop. Second: stop at once."""
        if self._is_draining:
            super().handle_exit(sig, frame)
            return
        self._is_draining = True
        self._runtime.begin_drain()
        self._loop.call_soon_threadsafe(self._start_drain)

    def _start_drain(self) -> None:
        self._drain_task = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        """Wait until nothing runs, or the drain timeout has passed; then let uvicorn shut down."""
        deadline_s = self._loop.time() + self._settings.drain_timeout_s
        while self._runtime.num_in_flight() and self._loop.time() < deadline_s:
            await asyncio.sleep(DRAIN_POLL_S)
        self.should_exit = True
