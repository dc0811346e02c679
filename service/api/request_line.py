"""The request line, read kindly: slashes too many, HEAD wherever GET is answered, OPTIONS.

Outermost of the middleware, so that keys, metrics and routes all see the same path and method.
"""

from collections.abc import Awaitable

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import ApiError


def clean_path(path: str) -> str:
    """A path without empty parts: `//v1/models/` is `/v1/models`."""
    return "/" + "/".join(part for part in path.split("/") if part)


class RequestLine:
    """Lets a path with doubled or trailing slashes find its route, and answers HEAD as GET without a body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a copy: the server goes by its own."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "path": clean_path(scope["path"])}
        if scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        def without_body(message: Message) -> Awaitable[None]:
            return send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, without_body)


def install(app: FastAPI) -> None:
    """Answer methods that a route does not have: OPTIONS with those it has, any other with 405."""

    async def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "registered for a status"
        methods = {name.strip() for name in (error.headers or {}).get("Allow", "").split(",")} - {""}
        methods |= {"OPTIONS", "HEAD"} if "GET" in methods else {"OPTIONS"}
        allow = {"Allow": ", ".join(sorted(methods))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        message = f"{request.method} is not answered on {request.url.path[:100]}; it has {allow['Allow']}"
        return ApiError(405, message, code="method_not_allowed", headers=allow).response()

    app.add_exception_handler(405, answer)
