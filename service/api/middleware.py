"""ASGI middleware around every route: the limit on body size, and the count of answers by route and code.

Plain ASGI rather than the framework's base class, which would buffer streams and cost more than a token does.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import body_too_large
from service.metrics import Metrics


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
        if not declared.isdigit() or int(declared) > self._max_body_bytes:
            await too_large.response()(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise too_large
            return message

        await self._app(scope, counted, send)


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

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "unmatched")
                self._metrics.count_http(route, message["status"])
            await send(message)

        await self._app(scope, receive, watched)
