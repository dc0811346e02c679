"""Server-sent events: the only module that knows `data: `.

A stream ends with `data: [DONE]`, or, if something fails after it has begun, with one `data: {"error": …}` event.
What lies between an event of the engine and the bytes sent for it is on the way of every token, so it is kept short.
"""

import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Protocol

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

TEXT = secrets.token_hex(16)  # stands for the text in the JSON of a chunk; nothing else in it reads so
TEXT_JSON = orjson.dumps(TEXT)

Payload = dict[str, Any]
Json = bytes  # a payload that is encoded already


class StreamWriter(Protocol):
    """Says what a stream tells of a generation."""

    def opening(self) -> Iterable[Payload]:
        """What is sent before any event has come."""

    def write(self, index: int, event: TokenEvent) -> Iterable[Payload | Json]:
        """What is sent for an event of the answer with this index."""

    def closing(self) -> Iterable[Payload]:
        """What is sent after the last event."""


class ChoiceWriter(Protocol):
    """Says what the choices of OpenAI's chunks are.

    is_plain: while an answer goes on, its chunks hold a piece of text each and nothing else that changes.
    """

    is_plain: bool

    def opening(self) -> Iterable[Payload]:
        """Choices sent before any event has come."""

    def chunks(self, index: int, event: TokenEvent) -> Iterable[Payload]:
        """The choices that an event makes."""

    def of_text(self, index: int, text: str) -> Payload:
        """The choice of a piece of text."""


class UsageFrames:
    """The chunks of OpenAI's older two routes: choices in frames, with token counts where they are asked for."""

    def __init__(self, generation: Generation, kind: str, body: OpenAIFields, writer: ChoiceWriter) -> None:
        """kind: the chunks' `object`. writer: says what the choices are."""
        self._generation = generation
        self._body = body
        self._writer = writer
        self._frame: Payload = {
            "id": generation.id,
            "object": kind,
            "created": generation.created,
            "model": generation.model_id,
        }
        if body.include_usage:
            self._frame["usage"] = None
        self._is_plain = writer.is_plain and not body.continuous_usage
        self._around_text: dict[int, tuple[bytes, bytes]] = {}  # of plain chunks, by index of the answer

    def opening(self) -> Iterable[Payload]:
        """As `StreamWriter`."""
        return [self._framed(choice) for choice in self._writer.opening()]

    def write(self, index: int, event: TokenEvent) -> Iterable[Payload | Json]:
        """As `StreamWriter`."""
        if self._is_plain and event.finish_reason is None:
            return (self._text_chunk(index, event.text),) if event.text else ()
        return [self._framed(choice) for choice in self._writer.chunks(index, event)]

    def closing(self) -> Iterable[Payload]:
        """As `StreamWriter`."""
        return [{**self._frame, "choices": [], "usage": self._usage()}] if self._body.include_usage else []

    def _text_chunk(self, index: int, text: str) -> Json:
        """The chunk of a piece of text; what is the same in all of an answer's chunks is encoded once."""
        around = self._around_text.get(index)
        if around is None:
            before, _, after = orjson.dumps(self._framed(self._writer.of_text(index, TEXT))).partition(TEXT_JSON)
            around = self._around_text[index] = before, after
        return around[0] + orjson.dumps(text) + around[1]

    def _framed(self, choice: Payload) -> Payload:
        if self._body.continuous_usage:
            return {**self._frame, "choices": [choice], "usage": self._usage()}
        return {**self._frame, "choices": [choice]}

    def _usage(self) -> Payload:
        return self._generation.usage().model_dump()


def encode(payload: Payload | Json) -> bytes:
    """One event."""
    return b"data: " + (payload if isinstance(payload, bytes) else orjson.dumps(payload)) + b"\n\n"


def encode_named(payload: Payload) -> bytes:
    """One event of the Responses API, whose name is its type."""
    return b"event: " + str(payload["type"]).encode() + b"\n" + encode(payload)


class EventStream(StreamingResponse):
    """Streams a generation as events, and closes it when the client is gone.

    The close is explicit because a client may leave before the first event is asked for, and a generator that was
    never started has nothing to clean up.
    """

    def __init__(
        self,
        generation: Generation,
        writer: StreamWriter,
        *,
        is_named: bool = False,
        silence_s: float | None = None,
        on_silence: Callable[[], Payload | None] = lambda: None,
    ) -> None:
        """Prepare it.

        is_named: events carry their type. silence_s: seconds without an event after which `on_silence` is told; None of
        it becomes a comment, which keeps the connection open.
        """
        super().__init__(self._bodies(), media_type="text/event-stream", headers=HEADERS)
        self._generation = generation
        self._writer = writer
        self._encode: Callable[[Any], bytes] = encode_named if is_named else encode
        self._is_named = is_named
        self._silence_s = SILENCE_S if silence_s is None else silence_s
        self._on_silence = on_silence

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send every event; however that ends, nothing is left running."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.close()

    async def stream_response(self, send: Send) -> None:
        """As Starlette does, but for asking the type of each body."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for body in self.body_iterator:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _bodies(self) -> AsyncGenerator[bytes, None]:
        """The events in bytes, all that are there at a time together."""
        encode, generation = self._encode, self._generation
        frames: list[bytes] = []
        num_sent = 0
        try:
            generation.stream.report_silence(self._silence_s)
            frames += map(encode, self._writer.opening())
            if frames:
                yield b"".join(frames)
                num_sent, frames = len(frames), []
            while events := await generation.stream.next_events():
                for event in events:
                    if event is not None:
                        frames += map(encode, self._writer.write(generation.take(event), event))
                    elif (news := self._on_silence()) is not None:
                        frames.append(encode(news))
                    else:
                        frames.append(KEEP_ALIVE)
                        num_sent -= 1  # no event
                if frames:
                    yield b"".join(frames)
                    num_sent, frames = num_sent + len(frames), []
            frames += map(encode, self._writer.closing())
            if not self._is_named:
                frames.append(DONE)
        except Exception as error:  # noqa: BLE001 - whatever it is, the stream gets its end
            frames.append(self._failure(error, num_sent + len(frames)))
        if frames:
            yield b"".join(frames)

    def _failure(self, error: Exception, sequence_number: int) -> bytes:
        """The event of an error."""
        api_error = from_exception(error)
        if api_error is INTERNAL_ERROR:
            logger.exception("unexpected error in a stream", exc_info=error)
        body = api_error.body()
        if self._is_named:
            return self._encode({**body["error"], "type": "error", "sequence_number": sequence_number})
        return self._encode(body)
