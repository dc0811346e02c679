"""ASGI middleware that reads request bodies as clients send them: bounded, compressed or not, JSON by any name.

Every route that takes a body takes JSON, so a body that holds a JSON object is read whatever its `Content-Type` says:
curl calls its data a form, and some clients send no type. Nothing is read before a route asks for it.
"""

from collections.abc import Awaitable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.content_coding import decoder_for
from service.api.errors import ApiError, body_too_large

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8, as some editors and shells write it
JSON_SPACE = b" \t\r\n"
BODILESS_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def media_type(headers: Headers) -> str:
    """The `Content-Type` without its parameters, in lower case; empty where there is none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(media: str) -> bool:
    """Whether a media type says JSON."""
    return media == "application/json" or (media.startswith("application/") and media.endswith("+json"))


class RequestBody:
    """Hands the app each body whole, decoded and called JSON; answers 413, 415 or 400 for one that it cannot."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        """max_body_bytes: of a body as it is sent, and as it is once decoded."""
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body when the app asks for it; whatever the app makes of one that failed, the refusal is sent."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        # more digits than 64 bits have are not even read as a number
        if not declared.isdigit() or len(declared) > 19 or int(declared) > self._max_body_bytes:
            await body_too_large(self._max_body_bytes).response()(scope, receive, send)
            return
        reader = _Reader(headers, self._max_body_bytes, receive)
        is_answered = False

        async def refuse(refusal: ApiError) -> None:
            nonlocal is_answered
            if not is_answered:
                is_answered = True
                await refusal.response()(scope, receive, send)

        def answer(message: Message) -> Awaitable[None]:
            return send(message) if reader.refusal is None else refuse(reader.refusal)

        if scope["method"] not in BODILESS_METHODS:
            scope["headers"] = _called_json(scope)  # in place: the route that is found is written into it, too
        await self._app(scope, reader.receive, answer)


def _called_json(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers of a body that is decoded and JSON."""
    headers = MutableHeaders(raw=list(scope["headers"]))
    if not is_json(media_type(headers)):
        headers["content-type"] = "application/json"
    del headers["content-encoding"]
    return headers.raw


class _Reader:
    """Reads one body when it is first asked for; afterwards it passes on what comes, which is the client's leaving."""

    def __init__(self, headers: Headers, max_body_bytes: int, receive: Receive) -> None:
        self._codings = headers.getlist("content-encoding")
        self._media = media_type(headers)
        self._max_body_bytes = max_body_bytes
        self._receive = receive
        self._is_asked = False
        self.refusal: ApiError | None = None

    def receive(self) -> Awaitable[Message]:
        """The app's `receive`; raises the refusal of a body that cannot be read."""
        if self._is_asked:
            return self._receive()
        self._is_asked = True
        return self._read()

    async def _read(self) -> Message:
        try:
            decoder = decoder_for(self._codings, self._max_body_bytes)
            pieces: list[bytes] = []
            is_complete = False
            while not is_complete:
                message = await self._receive()
                if message["type"] != "http.request":
                    return message
                pieces.append(decoder.feed(message.get("body", b"")))
                is_complete = not message.get("more_body", False)
            decoder.finish()
            body = b"".join(pieces).removeprefix(BYTE_ORDER_MARK)
            self._check_json(body)
        except ApiError as refusal:
            self.refusal = refusal
            raise
        return {"type": "http.request", "body": body, "more_body": False}

    def _check_json(self, body: bytes) -> None:
        """Name the type of what is no JSON and does not claim to be: a form, most often.

        Raises:
            ApiError: 400.
        """
        if not self._media or is_json(self._media) or body[:256].lstrip(JSON_SPACE)[:1] in (b"", b"{"):
            return
        message = f"the request body is sent as {self._media[:100]} and is no JSON object; "
        raise ApiError(400, f"{message}send JSON with Content-Type: application/json", code="invalid_json")
