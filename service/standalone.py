"""One process, uvicorn, no Ray: `attend serve --standalone`.

Separate from the app because stopping well is a server's business: the first signal drains, the second stops at once.
"""

import asyncio
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.app import Runtime, build_app
from service.http_protocol import GuardedProtocol
from service.ports import base_url, check_port
from service.settings import Settings

DRAIN_POLL_S = 0.05
LAST_BYTES_S = 5.0  # for answers to be written once their requests have ended


def serve_standalone(settings: Settings, started_s: float | None = None) -> int:
    """Serve until a signal; returns the process's exit status.

    started_s: monotonic seconds when the start began, for the ready line; by default now.

    Raises:
        ServeError: the port cannot be used.
        BundleError, DecoderError: the model cannot be served.
    """
    started_s = time.monotonic() if started_s is None else started_s
    check_port(settings.host, settings.port)
    app = build_app(settings.model_copy(update={"replicas": 1}))
    server = _DrainingServer(app, settings, started_s)
    server.run()
    if not server.started:
        return 1
    return 128 + server.stopped_at_once_by if server.stopped_at_once_by else 0


class _DrainingServer(uvicorn.Server):
    """A uvicorn server that keeps answering while it drains: new requests get 503, running ones finish."""

    def __init__(self, app: FastAPI, settings: Settings, started_s: float) -> None:
        config = uvicorn.Config(
            app,
            settings.host,
            settings.port,
            http=GuardedProtocol,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self._runtime: Runtime = app.state.runtime
        self._settings = settings
        self._started_s = started_s
        self._is_draining = False
        self._drain_task: asyncio.Task[None] | None = None
        self.stopped_at_once_by = 0  # the second signal's number

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, then say so in one line."""
        await super().startup(sockets)
        if self.started:
            url, duration_s = base_url(self._settings.host, self._settings.port), time.monotonic() - self._started_s
            print(f"attend: ready at {url} (standalone) in {duration_s:.1f} s", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain, then stop. Second: stop at once. Before the start is complete: uvicorn's own way."""
        if not self.started:
            super().handle_exit(sig, frame)
        elif self._is_draining:
            self.stopped_at_once_by = sig
        else:
            self._is_draining = True
            self._runtime.begin_drain()

    async def on_tick(self, counter: int) -> bool:
        """Uvicorn's heartbeat, every 0.1 s: start the drain that a signal asked for (a handler cannot)."""
        if self._is_draining and self._drain_task is None:
            self._drain_task = asyncio.ensure_future(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        """Wait for running requests; at the timeout or a second signal end them, so that each client reads an error."""
        deadline_s = time.monotonic() + self._settings.drain_timeout_s
        while self._num_open() and time.monotonic() < deadline_s and not self.stopped_at_once_by:
            await asyncio.sleep(DRAIN_POLL_S)
        await asyncio.to_thread(self._runtime.stop_engine)
        last_bytes_s = time.monotonic() + LAST_BYTES_S
        while self._num_open() and time.monotonic() < last_bytes_s:
            await asyncio.sleep(DRAIN_POLL_S)
        self.should_exit = True

    def _num_open(self) -> int:
        """Requests of the engine, or answers still being written."""
        return max(self._runtime.num_in_flight(), len(self.server_state.tasks))
