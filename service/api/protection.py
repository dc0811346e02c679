"""ASGI middleware between the network and every route: who calls, which request this is, how large its headers are.

Separate from `middleware.py`, which guards the service's own promises; this guards it from strangers. Plain ASGI, and
only for HTTP: the service has no web sockets, and whoever adds one has to protect it.
"""

import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import ApiError
from service.api.keys import KeyRing

ANONYMOUS = "anonymous"
# What orchestrators and load balancers ask every few seconds, from places where no key should lie. Both say one word
# about this process; they tell nothing of the model, its callers or their requests.
OPEN_PATHS = frozenset({"/health", "/ready"})
OPEN_METHODS = frozenset({"GET", "HEAD"})
IGNORED_FIELDS = "x-attend-ignored-fields"
MAX_LISTED_NAMES = 20
MAX_NAME_CHARACTERS = 64
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Authentication:
    """Answers 401 to every request without a known key, on every route, known or not, but the two of `OPEN_PATHS`.

    The caller's name is put into `scope["state"]["caller"]`. The body of a refused request is never read.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        self._app = app
        self._ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name the caller or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            caller = self._caller(scope)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> str:
        """The caller's name.

        Raises:
            ApiError: 401.
        """
        if self._ring.is_open or (scope["path"] in OPEN_PATHS and scope["method"] in OPEN_METHODS):
            return ANONYMOUS
        given = _values(scope, b"authorization")
        if not given:
            raise _unauthorized("missing_api_key", "an API key is needed; send it as Authorization: Bearer KEY")
        caller = self._ring.find(given[0]) if len(given) == 1 else None  # of two, a proxy may have checked the other
        if caller is None:
            raise _unauthorized(
                "invalid_api_key", "the Authorization header holds no known API key; send Authorization: Bearer KEY"
            )
        return caller


class RequestId:
    """Gives each request an id and each answer, errors included, `x-request-id` and `x-process-time`.

    Answers to requests with fields that were ignored name them in `x-attend-ignored-fields`.

    A client's own `x-request-id` is kept if it is 1 to 128 characters of A-Z, a-z, 0-9 and `._:-`. Any other, or more
    than one, is replaced and not refused: an id serves whoever reads logs, and is no reason to fail a request. The id
    in use is in `scope["state"]["request_id"]`.
    """

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic, *, returns_id: bool = True) -> None:
        """clock: monotonic seconds. returns_id: False where the server around the app returns the id itself."""
        self._app = app
        self._clock = clock
        self._returns_id = returns_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add both headers to the start of the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived_s = self._clock()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id

        def labelled(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                headers = MutableHeaders(scope=message)
                if self._returns_id:
                    headers["x-request-id"] = request_id
                headers["x-process-time"] = f"{self._clock() - arrived_s:.6f}"
                if ignored := scope["state"].get("ignored_fields"):
                    headers[IGNORED_FIELDS] = _listed(ignored)
            return send(message)

        await self._app(scope, receive, labelled)


class HeaderLimit:
    """Answers 431 to a request whose headers are too many or, names and values together, too large."""

    def __init__(self, app: ASGIApp, max_header_bytes: int = 16384, max_headers: int = 100) -> None:
        self._app = app
        self._max_header_bytes = max_header_bytes
        self._max_headers = max_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count before anything looks at a header."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        num_headers = len(scope["headers"])
        num_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if num_headers <= self._max_headers and num_bytes <= self._max_header_bytes:
            await self._app(scope, receive, send)
            return
        message = (
            f"the request has {num_headers} headers with {num_bytes} bytes; "
            f"at most {self._max_headers} headers with {self._max_header_bytes} bytes are allowed"
        )
        await ApiError(431, message, code="headers_too_large").response()(scope, receive, send)


def _unauthorized(code: str, message: str) -> ApiError:
    return ApiError(401, message, "authentication_error", code=code, headers={"WWW-Authenticate": "Bearer"})


def _request_id(scope: Scope) -> str:
    """The client's id if there is one and it can be trusted in a log, else a new one."""
    given = _values(scope, b"x-request-id")
    if len(given) == 1 and REQUEST_ID.fullmatch(given[0]):
        return given[0].decode("ascii")
    return f"req-{uuid.uuid4().hex}"


def _listed(names: Sequence[str]) -> str:
    """A client's own names as a header can hold them: percent-encoded, and not too many."""
    shown = [quote(name[:MAX_NAME_CHARACTERS], safe="._-") for name in names[:MAX_LISTED_NAMES]]
    return ", ".join([*shown, "..."] if len(names) > MAX_LISTED_NAMES else shown)


def _values(scope: Scope, name: bytes) -> list[bytes]:
    """Every value of a header, whose name ASGI gives in lower case."""
    return [value for key, value in scope["headers"] if key == name]
