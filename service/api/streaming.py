"""Server-sent events: the only module that knows `data: `.

A stream ends with `data: [DONE]`, or, if something fails after it has begun, with one `data: {"error": …}` event.
"""

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import orjson
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api.errors import INTERNAL_ERROR, from_exception

logger = logging.getLogger(__name__)

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DONE = b"data: [DONE]\n\n"


def encode(payload: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


class EventStream(StreamingResponse):
    """Streams payloads as events, and cancels the request behind them when the client is gone.

    The cancel is explicit because a client may leave before the first event is asked for, and a generator that was
    never started has nothing to clean up.
    """

    def __init__(self, payloads: AsyncGenerator[dict[str, Any], None], cancel: Callable[[], None]) -> None:
        """cancel: ends the request behind `payloads`; harmless once it has ended."""
        super().__init__(_encode_all(payloads), media_type="text/event-stream", headers=HEADERS)
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send every event; however that ends, nothing is left running."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._cancel()


async def _encode_all(payloads: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    try:
        async with contextlib.aclosing(payloads):
            async for payload in payloads:
                yield encode(payload)
        yield DONE
    except Exception as error:
        api_error = from_exception(error)
        if api_error is INTERNAL_ERROR:
            logger.exception("unexpected error in a stream")
        yield encode(api_error.body())
