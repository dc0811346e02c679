"""Server-sent events: the only module that knows `data: `.

A stream ends with `data: [DONE]`, or, if something fails after it has begun, with one `data: {"error": …}` event.
"""

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

import orjson
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api.errors import INTERNAL_ERROR, from_exception
from service.api.generation import Generation
from service.engine.request import TokenEvent
from service.schemas.generation import OpenAIFields

logger = logging.getLogger(__name__)

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
SILENCE_S = 10.0  # proxies commonly close a connection that is silent for 30 to 60 s

Payload = dict[str, Any]


async def usage_frames(
    generation: Generation,
    kind: str,
    body: OpenAIFields,
    opening: Iterable[Payload],
    write: Callable[[int, TokenEvent], Iterable[Payload]],
) -> AsyncGenerator[Payload | None, None]:
    """The chunks of OpenAI's older two routes: choices in frames, with token counts where they are asked for.

    kind: the chunks' `object`. opening: choices sent before any event. write: the choices that an event makes.
    """
    frame: Payload = {
        "id": generation.id,
        "object": kind,
        "created": generation.created,
        "model": generation.model_id,
    }
    if body.include_usage:
        frame["usage"] = None

    def framed(choice: Payload) -> Payload:
        counts = {"usage": generation.usage().model_dump()} if body.continuous_usage else {}
        return {**frame, "choices": [choice], **counts}

    async with contextlib.aclosing(generation.events_or_silence(SILENCE_S)) as events:
        for choice in opening:
            yield framed(choice)
        async for item in events:
            if item is None:
                yield None
                continue
            for choice in write(*item):
                yield framed(choice)
    if body.include_usage:
        yield {**frame, "choices": [], "usage": generation.usage().model_dump()}


def encode(payload: Payload) -> bytes:
    """One event."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def encode_named(payload: Payload) -> bytes:
    """One event of the Responses API, whose name is its type."""
    return b"event: " + str(payload["type"]).encode() + b"\n" + encode(payload)


class EventStream(StreamingResponse):
    """Streams payloads as events, and closes what stands behind them when the client is gone.

    The close is explicit because a client may leave before the first event is asked for, and a generator that was
    never started has nothing to clean up. A payload of None, after a silence, becomes a comment that keeps the
    connection open.
    """

    def __init__(
        self, payloads: AsyncGenerator[Payload | None, None], close: Callable[[], None], *, is_named: bool = False
    ) -> None:
        """close: ends the request behind `payloads`; harmless once it has ended. is_named: events carry their type."""
        super().__init__(_encode_all(payloads, is_named), media_type="text/event-stream", headers=HEADERS)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send every event; however that ends, nothing is left running."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _encode_all(payloads: AsyncGenerator[Payload | None, None], is_named: bool) -> AsyncGenerator[bytes, None]:
    write = encode_named if is_named else encode
    num_sent = 0
    try:
        async with contextlib.aclosing(payloads):
            async for payload in payloads:
                num_sent += payload is not None
                yield KEEP_ALIVE if payload is None else write(payload)
        if not is_named:
            yield DONE
    except Exception as error:
        api_error = from_exception(error)
        if api_error is INTERNAL_ERROR:
            logger.exception("unexpected error in a stream")
        body = api_error.body()
        yield write({**body["error"], "type": "error", "sequence_number": num_sent} if is_named else body)
