"""GuardedProtocol: uvicorn's HTTP protocol with bounds on what comes before a request is known.

Separate because it guards a socket, not a request: middleware sees headers only once they are complete, and httptools
takes as many of them, for as long, as a client sends. Only `--standalone` needs it; HAProxy bounds both before Ray.
"""

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024  # request line and headers together; the app itself allows 16 KiB of headers
HEAD_TIMEOUT_S = 20.0
MESSAGES = {
    400: ("the request is not HTTP that can be read", "invalid_http"),
    408: (f"the request's headers were not complete after {HEAD_TIMEOUT_S:.0f} s", "headers_timeout"),
    431: (f"the request line and headers are larger than {MAX_HEAD_BYTES} bytes", "headers_too_large"),
}
REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


class GuardedProtocol(HttpToolsProtocol):
    """Closes connections whose headers are too large or too slow, with the contract's error body."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._num_head_bytes = 0
        self._is_in_head = True
        self._num_complete = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; count what is nothing but a part of one head."""
        was_in_head, num_complete = self._is_in_head, self._num_complete
        super().data_received(data)
        if was_in_head and self._is_in_head and num_complete == self._num_complete:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse(431)

    def on_message_begin(self) -> None:
        """The first bytes of a request: from here on its head is counted and timed."""
        self._end_head()
        self._begin_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The request is known: from here on the app bounds it."""
        self._end_head()
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Whatever follows is the head of a further request; nothing is timed before it begins."""
        super().on_message_complete()
        self._is_in_head = True
        self._num_head_bytes = 0
        self._num_complete += 1

    def send_400_response(self, _msg: str) -> None:
        """What is no HTTP gets the contract's body too."""
        self._refuse(400)

    def _begin_head(self) -> None:
        self._num_head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, 408)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int) -> None:
        """Answer, then close. Whoever sent nothing, or still reads the answer before, is only closed."""
        self._end_head()
        if self.transport.is_closing():
            return
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if not is_answering and (status != 408 or self._num_head_bytes):
            message, code = MESSAGES[status]
            detail = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
            body = orjson.dumps({"error": detail})
            lines = [
                f"HTTP/1.1 {status} {REASONS[status]}",
                "content-type: application/json",
                f"content-length: {len(body)}",
                "connection: close",
            ]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
