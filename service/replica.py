"""Replica: one copy of the app in a Ray actor: built there, watched, drained and stopped there.

Separate from the deployment, which starts replicas; this is what runs inside one. Ray Serve calls its methods by name;
it imports no Ray itself.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from service.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send


class Runtime(Protocol):
    """What a replica needs of `app.state.runtime`."""

    def begin_drain(self) -> None:
        """Refuse new requests from now on."""

    def num_in_flight(self) -> int:
        """Requests accepted and not yet ended."""

    def check_health(self) -> None:
        """Raise if the engine is dead or stalled."""


AppBuilder = Callable[[Settings], "FastAPI"]


class ReplicaStartError(Exception):
    """Carries a builder's message through Ray's tracebacks, as one line of JSON that `deploy_failure` finds again."""

    def __init__(self, error: Exception) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        is_sentence = type(error).__module__ != "builtins" or isinstance(error, (OSError, ValueError, RuntimeError))
        message = text if is_sentence else f"{type(error).__name__}: {text}"
        super().__init__(f"attend-start-error: {json.dumps({'message': message})}")


@dataclass
class OpenCount:
    """How many HTTP requests have begun and not ended."""

    num_open: int = 0


class OpenRequests:
    """ASGI middleware that counts the requests whose response is not yet handed over whole.

    The engine is done with a request before its last bytes are sent; a drain has to wait for both.
    """

    def __init__(self, app: "ASGIApp", count: OpenCount) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass one request on and count it while it runs."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        self._count.num_open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._count.num_open -= 1


class Replica:
    """The deployment: one FastAPI ingress and its engine, in one Ray actor.

    Its methods are `async` so that Ray runs them on the app's event loop, and none of them blocks.
    """

    def __init__(self, settings: Settings, build: AppBuilder, metrics_targets: Callable[[], list[str]]) -> None:
        """metrics_targets: lists the addresses of all replicas; it may block."""
        self._settings = settings
        self._build = build
        self._metrics_targets = metrics_targets
        self._open = OpenCount()
        self._is_draining = False
        self._start_error: ReplicaStartError | None = None
        self._engine_lifespan = AsyncExitStack()

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Build the app inside the replica (Ray Serve's hook): no model crosses from the driver."""
        try:
            self._app = self._build(self._settings)
        except Exception as error:
            raise ReplicaStartError(error) from error
        self._app.add_middleware(OpenRequests, count=self._open)
        self._app.state.metrics_targets = self._metrics_targets
        self._own_lifespan(self._app)
        return self._app

    def _own_lifespan(self, app: "FastAPI") -> None:
        """Run the app's lifespan through this object.

        Ray logs an error raised in it and reports "check replica logs"; kept here, `check_health` reports it. And
        `stop_engine` can end the lifespan while responses are still open.
        """
        original = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: "FastAPI") -> AsyncIterator[Any]:
            state = None
            try:
                state = await self._engine_lifespan.enter_async_context(original(app))
            except Exception as error:  # noqa: BLE001 - whatever it is, `check_health` raises it
                self._start_error = ReplicaStartError(error)
            try:
                yield state
            finally:
                await self.stop_engine()

        app.router.lifespan_context = lifespan

    @property
    def _runtime(self) -> Runtime:
        runtime: Runtime = self._app.state.runtime
        return runtime

    async def check_health(self) -> None:
        """Raise if the app did not start, or its engine is dead or stalled (Ray Serve's hook, also after the start)."""
        if self._start_error is not None:
            raise self._start_error
        self._runtime.check_health()

    async def drain(self) -> int:
        """Refuse new requests from the first call on; return how many are still open."""
        if not self._is_draining:
            self._is_draining = True
            self._runtime.begin_drain()
        return max(self._runtime.num_in_flight(), self._open.num_open)

    async def stop_engine(self) -> None:
        """End the app's lifespan now: open streams get the engine's last event instead of a cut connection."""
        await self._engine_lifespan.aclose()
