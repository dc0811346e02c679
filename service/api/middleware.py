"""ASGI middleware around every route: the limit on body size, and the count of answers by route and code.

Plain ASGI rather than the framework's base class, which would buffer streams and cost more than a token does. What
wraps `send` is called for every token, and so hands on the inner awaitable instead of being a coroutine of its own.
"""

import logging
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import INTERNAL_ERROR, body_too_large
from service.metrics import Metrics

logger = logging.getLogger(__name__)


class BodyLimit:
    """Answers 413 to a body over the limit, whether its length is declared or only found while reading."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the body's bytes as the app reads them."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_large = body_too_large(self._max_body_bytes)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        # more digits than 64 bits have are not even read as a number
        if not declared.isdigit() or len(declared) > 19 or int(declared) > self._max_body_bytes:
            await too_large.response()(scope, receive, send)
            return
        watch = _BodyWatch(self._max_body_bytes, receive)
        answered = False

        async def refuse() -> None:
            nonlocal answered
            if not answered:
                answered = True
                await too_large.response()(scope, receive, send)

        def answer(message: Message) -> Awaitable[None]:
            """Whatever the app made of a body that was cut off, the answer is 413."""
            return refuse() if watch.is_exceeded else send(message)

        await self._app(scope, watch.receive, answer)


class _BodyWatch:
    """Counts the bytes of one body as the app reads them, and cuts it off at the limit."""

    def __init__(self, max_body_bytes: int, receive: Receive) -> None:
        self._max_body_bytes = max_body_bytes
        self._receive = receive
        self._num_bytes = 0

    @property
    def is_exceeded(self) -> bool:
        """Whether more came than is allowed."""
        return self._num_bytes > self._max_body_bytes

    async def receive(self) -> Message:
        """The app's `receive`; raises once the limit is passed."""
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        if self.is_exceeded:
            raise body_too_large(self._max_body_bytes)
        return message


class HttpMetrics:
    """Counts answers by the route's pattern (never the raw path, which is the client's) and status code."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Watch for the start of the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        def watched(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "unmatched")
                self._metrics.count_http(route, message["status"])
            return send(message)

        await self._app(scope, receive, watched)


class LastResort:
    """Answers what no handler expected: 500 with the contract's body, the reason in the log and nowhere else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Catch everything; an answer that has begun can only be cut."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        def watched(message: Message) -> Awaitable[None]:
            nonlocal has_begun
            has_begun = True
            return send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            logger.exception("unexpected error on %s", scope["path"])
            if has_begun:
                raise
            await INTERNAL_ERROR.response()(scope, receive, send)
