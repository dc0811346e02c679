"""Web pages of other origins: which may call, and what a browser is told about it (the CORS protocol).

Starlette's middleware does the protocol. Here are the parts it leaves: refusals in the contract's body, no coroutine
for each token, and the requests that browsers send without asking first.
"""

from collections.abc import Awaitable, Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import ApiError
from service.api.request_body import BODILESS_METHODS, is_json, media_type

ANY = "*"
EXPOSED_HEADERS = (
    "Allow",
    "Retry-After",
    "Server-Timing",
    "retry-after-ms",
    "x-attend-ignored-fields",
    "x-process-time",
    "x-request-id",
    "x-should-retry",
)
METHODS = ("GET", "HEAD", "OPTIONS", "POST")
MAX_AGE_S = 600  # for which a browser need not ask again


class Cors(CORSMiddleware):
    """Tells browsers that pages of the listed origins may call: preflights, and a header on every other answer.

    Preflights carry no key, so this stands outside of authentication. No cookies are used, so none are allowed.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        """origins: each `scheme://host[:port]`, or `*` for any."""
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=[ANY],
            allow_private_network=True,
            expose_headers=EXPOSED_HEADERS,
            max_age=MAX_AGE_S,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer as Starlette does; a refusal has the contract's body."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        message = f"pages of {request_headers['origin'][:100]} may not send this: {bytes(response.body).decode()}"
        return ApiError(400, message, code="cors_refused", headers=headers).response()

    async def simple_response(self, scope: Scope, receive: Receive, send: Send, request_headers: Headers) -> None:
        """Add headers to the start of an answer only, and hand on what follows as it is."""

        def answer(message: Message) -> Awaitable[None]:
            if message["type"] != "http.response.start":
                return send(message)
            return self.send(message, send, request_headers)

        await self.app(scope, receive, answer)


class OriginGuard:
    """Answers 403 to what a page of an origin that is not listed sends without its browser having asked first.

    Browsers ask before they send JSON, but not before plain text or a form, and those are read as JSON too. The page
    could not read the answer, but it would make the service work.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        """origins: as for `Cors`; none allows only pages of the service itself."""
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at the headers only."""
        if scope["type"] != "http" or scope["method"] in BODILESS_METHODS or self._is_welcome(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        message = "a page of another origin may send only what is declared as Content-Type: application/json"
        await ApiError(403, message, "permission_error", code="origin_not_allowed").response()(scope, receive, send)

    def _is_welcome(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None or is_json(media_type(headers)):
            return True
        if origin in self._origins or ANY in self._origins or headers.get("sec-fetch-site") == "same-origin":
            return True
        return origin.partition("://")[2] == headers.get("host", "")
