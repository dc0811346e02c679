"""Every error that a client can see: one body, one table from exceptions to status codes.

Separate from the routes so that none of them decides a status. Exceptions that the table does not know answer 500 and
leak nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from model.chat import ChatTemplateError
from model.sampling import InvalidSamplingError
from service.api.limits import RateLimitedError
from service.api.violations import first_violation, shortened
from service.engine.engine import CONSTRAINT_FAILED_MESSAGE
from service.engine.loop import EngineDrainingError, EngineUnhealthyError, QueueFullError, SubmitRefusedError
from service.engine.request_check import InvalidRequestError
from service.schemas.field_rules import nearest_name

RETRY_AFTER_S = {429: 1.0, 503: 5.0}


@dataclass(eq=False)  # not frozen: the interpreter sets an exception's traceback
class ApiError(Exception):
    """An error with its status and the contract's body."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None  # with 429 and 503; the usual time if None

    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The error as an HTTP answer."""
        headers = dict(self.headers)
        if self.status in RETRY_AFTER_S:
            seconds = RETRY_AFTER_S[self.status] if self.retry_after_s is None else self.retry_after_s
            headers["Retry-After"] = str(math.ceil(seconds))
            headers["retry-after-ms"] = str(math.ceil(seconds * 1000))
        return _ErrorResponse(self, headers)


class _ErrorResponse(Response):
    """Leaves the error's code in `scope["state"]["error_code"]`, where the middleware that counts refusals reads it."""

    def __init__(self, error: ApiError, headers: Mapping[str, str]) -> None:
        super().__init__(orjson.dumps(error.body()), error.status, headers, media_type="application/json")
        self._code = error.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it as every response is sent."""
        scope.setdefault("state", {})["error_code"] = self._code
        await super().__call__(scope, receive, send)


INTERNAL_ERROR = ApiError(500, "an internal error occurred; it has been logged", "server_error", code="internal_error")


def answer_failed(message: str) -> ApiError:
    """The end of a request that could not be finished: by its own constraint, or by the engine."""
    if message.startswith(CONSTRAINT_FAILED_MESSAGE):
        return ApiError(400, message, code="invalid_constraint")
    return ApiError(500, message, "server_error", code="engine_failed")


def deadline_passed() -> ApiError:
    """The end of a request whose own deadline passed."""
    message = "the request's deadline passed before its answer was complete"
    headers = {"x-should-retry": "false"}  # OpenAI's clients would try twice more, with the same deadline
    return ApiError(408, message, "timeout", code="deadline", headers=headers)


def unknown_field(name: str, known: Iterable[str]) -> ApiError:
    """A field that nobody knows, with the one that may have been meant."""
    nearest = nearest_name(name, known)
    advice = f"; did you mean {nearest}?" if nearest is not None else ""
    message = f"{shortened(name)} is not a field of this request{advice}"
    return ApiError(400, message, param=shortened(name), code="unknown_field")


def unknown_model(given: str, served: Sequence[str]) -> ApiError:
    """Another model id than those served."""
    message = f"model {shortened(given)!r} is not served here; served: {', '.join(map(repr, served))}"
    return ApiError(404, message, param="model", code="model_not_found")


def body_too_large(limit_bytes: int) -> ApiError:
    """A request body over the limit."""
    message = f"the request body is larger than {limit_bytes} bytes, the limit of this service"
    return ApiError(413, message, code="body_too_large")


def from_exception(error: Exception) -> ApiError:  # noqa: PLR0911 - a table reads best as one
    """The table."""
    match error:
        case ApiError():
            return error
        case InvalidRequestError():
            return ApiError(400, str(error), param=error.param, code=error.code)
        case InvalidSamplingError():
            return ApiError(400, str(error), param=error.param, code="invalid_value")
        case ChatTemplateError():
            return ApiError(400, str(error), param="messages", code="invalid_value")
        case RateLimitedError():
            return ApiError(429, error.message, "rate_limit_error", code=error.kind, retry_after_s=error.retry_after_s)
        case QueueFullError():
            return ApiError(429, str(error), "rate_limit_error", code="queue_full")
        case EngineDrainingError():
            return ApiError(503, str(error), "service_unavailable", code="draining")
        case EngineUnhealthyError() | SubmitRefusedError():
            return ApiError(503, "the engine is not running; try again", "service_unavailable", code="unhealthy")
        case RequestValidationError():
            param, message, code = first_violation(error.errors(), error.body)
            return ApiError(400, message, param=param, code=code)
        case HTTPException():
            return _from_http(error)
    return INTERNAL_ERROR


def install(app: FastAPI) -> None:
    """Answer the exceptions that the table knows; middleware.LastResort answers the others."""

    async def handle(request: Request, error: Exception) -> Response:
        api_error = from_exception(error)
        if isinstance(error, HTTPException) and error.status_code == 404:
            api_error = ApiError(
                404, f"no route {request.method} {shortened(request.url.path)}", code="route_not_found"
            )
        return api_error.response()

    known = (
        ApiError,
        InvalidRequestError,
        InvalidSamplingError,
        ChatTemplateError,
        RateLimitedError,
        SubmitRefusedError,
        RequestValidationError,
        HTTPException,
    )
    for kind in known:
        app.add_exception_handler(kind, handle)


def _from_http(error: HTTPException) -> ApiError:
    """Errors that the framework raises: unknown routes, wrong methods, unreadable bodies."""
    if error.status_code == 400:
        return ApiError(
            400,
            "the request body could not be read; send JSON in UTF-8, with numbers of at most 4,300 digits",
            code="invalid_json",
        )
    code = {405: "method_not_allowed"}.get(error.status_code)
    return ApiError(error.status_code, str(error.detail), code=code, headers=dict(error.headers or {}))
