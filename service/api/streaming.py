"""Server-sent events: the only module that knows `data: `.

A stream ends with `data: [DONE]`, or, if something fails after it has begun, with one `data: {"error": …}` event.
"""

import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any

import orjson
from fastapi.responses import StreamingResponse

from service.api.errors import INTERNAL_ERROR, from_exception

logger = logging.getLogger(__name__)

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DONE = b"data: [DONE]\n\n"


def encode(payload: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def event_stream(payloads: AsyncGenerator[dict[str, Any], None]) -> StreamingResponse:
    """Stream payloads as events. A client that leaves closes `payloads`, which cancels the request behind them."""
    return StreamingResponse(_encode_all(payloads), media_type="text/event-stream", headers=HEADERS)


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
