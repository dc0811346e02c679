"""ASGI middleware around every route: the count of answers by route and code, and the answer to the unexpected.

Plain ASGI rather than the framework's base class, which would buffer streams and cost more than a token does. What
wraps `send` is called for every token, and so hands on the inner awaitable instead of being a coroutine of its own.
"""

import logging
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import INTERNAL_ERROR
from service.metrics import Metrics

logger = logging.getLogger(__name__)


UNMATCHED = "unmatched"  # the route of what was answered before any was found
UNAUTHORIZED = 401
NOT_REFUSED = frozenset({408, 499})  # begun, and ended by its deadline or by its client


class HttpMetrics:
    """Counts answers by the route's pattern (never the raw path, which is the client's) and status code.

    And, by reason, the POST requests that were refused: probes and scrapes only read.
    """

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
                self._count(scope, message["status"])
            return send(message)

        await self._app(scope, receive, watched)

    def _count(self, scope: Scope, status: int) -> None:
        self._metrics.count_http(getattr(scope.get("route"), "path", UNMATCHED), status)
        if scope["method"] != "POST" or status in NOT_REFUSED or not (400 <= status < 500 or status == 503):
            return
        code = str(scope.get("state", {}).get("error_code"))
        self._metrics.count_rejection("unauthorized" if status == UNAUTHORIZED else code)


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
