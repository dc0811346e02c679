"""Every error that a client can see: one body, one table from exceptions to status codes.

Separate from the routes so that none of them decides a status. Exceptions that the table does not know answer 500 and
leak nothing.
"""

import math
import re
from collections.abc import Mapping, Sequence
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
from service.engine.engine import CONSTRAINT_FAILED_MESSAGE
from service.engine.loop import EngineDrainingError, EngineUnhealthyError, QueueFullError, SubmitRefusedError
from service.engine.request_check import InvalidRequestError

RETRY_AFTER_S = {429: 1.0, 503: 5.0}
REFUSED_FIELDS = {
    "audio": "Attend serves text models",
    "best_of": "/v1/completions has it",
    "conversation": "nothing is stored; send the whole conversation",
    "frequency": "did you mean frequency_penalty?",
    "function_call": "it is deprecated; use tool_choice",
    "functions": "it is deprecated; use tools",
    "include": "there is nothing more to include",
    "grammar": "this service calls it guided_grammar",
    "json_schema": "this service calls it guided_json",
    "logits_processors": "code in requests is never run",
    "max_output_tokens": "this route calls it max_tokens",
    "max_tokens": "this route calls it max_output_tokens",
    "n": "this route gives one answer",
    "n_predict": "this service calls it max_tokens",
    "name": "chat templates have no place for it; write it into the content",
    "prediction": "use speculation: true, which needs no text",
    "previous_response_id": "nothing is stored; send the whole conversation as input",
    "prompt_cache_key": "equal prompts are found by their tokens; cache_salt keeps them apart",
    "reasoning": "the served model does not reason apart from its answer",
    "reasoning_effort": "the served model does not reason apart from its answer",
    "repeat_penalty": "this service calls it repetition_penalty",
    "return_token_ids": "/v1/generate returns token ids",
    "stop": "this route has stop_token_ids only",
    "stream_options": "this route always ends with the token counts",
    "suffix": "the served model cannot fill in a middle",
    "use_beam_search": "use best_of on /v1/completions",
    "verbosity": "use max_tokens, or ask for it in a message",
    "web_search_options": "there is no web search; offer it as a tool",
}
MAX_NAME_CHARACTERS = 100  # of a client's own text repeated in a message


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
        """As every response."""
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


def unknown_model(given: str, served: str) -> ApiError:
    """Another model id than the one served."""
    message = f"model {_shorten(given)!r} is not served here; served: {served!r}"
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
            return _from_validation(error)
        case HTTPException():
            return _from_http(error)
    return INTERNAL_ERROR


def install(app: FastAPI) -> None:
    """Answer the exceptions that the table knows; middleware.LastResort answers the others."""

    async def handle(request: Request, error: Exception) -> Response:
        api_error = from_exception(error)
        if isinstance(error, HTTPException) and error.status_code == 404:
            api_error = ApiError(404, f"no route {request.method} {_shorten(request.url.path)}", code="route_not_found")
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


def _from_validation(error: RequestValidationError) -> ApiError:
    """One violation, in one line: which field, what is wrong with it."""
    first = _most_telling(error.errors())
    location = [part for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "not JSON")
        return ApiError(400, f"the request body is not valid JSON: {reason}", code="invalid_json")
    if first["type"] == "refused":
        name = _field_name([*location, first["ctx"]["field"]])
        return ApiError(400, str(first["msg"]), param=name, code="invalid_value")
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        location.append(first["ctx"]["discriminator"].strip("'"))
    name = _field_name(location, keep_last=first["type"] == "extra_forbidden")
    if not name:
        message = "the request body must be a JSON object with Content-Type: application/json"
        return ApiError(400, message, code="invalid_json")
    if first["type"] == "extra_forbidden":
        reason = REFUSED_FIELDS.get(str(location[-1]))
        message = f"{name} is not a field of this request" + (f": {reason}" if reason else "")
        return ApiError(400, message, param=name, code="unknown_field")
    if first["type"] == "missing":
        return ApiError(400, f"{name} is missing", param=name, code="missing_field")
    reason = _lower_first(str(first["msg"]))
    if isinstance(first.get("input"), str):  # pydantic's words for a text that something has checked before
        reason = re.sub(r"\bitem(s?) after validation", r"character\1", reason)
    message = f"{name}: {reason}{_given(first.get('input'))}"
    return ApiError(400, message, param=name, code="invalid_value")


def _most_telling(violations: Sequence[Any]) -> Any:
    """Of the first field's violations, the one that got furthest.

    Where a field may be of several types, the others only say that it is of another type.
    """
    field_name = violations[0]["loc"][:2]
    same_field = [violation for violation in violations if violation["loc"][:2] == field_name]
    return max(same_field, key=_telling)


def _telling(violation: Any) -> tuple[bool, int, bool]:
    """A list of a wrong length is one of the right type, whatever its items would be to the other types."""
    kind = violation["type"]
    depth = _field_name(violation["loc"]).count(".")
    return kind in ("too_long", "too_short"), depth, not kind.endswith("_type")


# Where a location has the branch of a tagged union in it, which is no field: after which first part, at which place.
TAGS = {("messages", 2), ("input", 3), ("response_format", 1), ("text", 2)}
TAG_NAMES = {"system", "developer", "user", "assistant", "tool", "text", "json_object", "json_schema"}
TAG_NAMES |= {"message", "function_call", "function_call_output"}


def _field_name(location: Sequence[int | str], *, keep_last: bool = False) -> str:
    """`messages.0.role`; parts that name a branch of a union of types are left out.

    keep_last: the last part is a client's own name, whatever it looks like.
    """
    if keep_last:
        inner = _field_name(location[:-1])
        return _shorten(f"{inner}.{location[-1]}" if inner else str(location[-1]))
    named = [part for at, part in enumerate(location) if not (at and (location[0], at) in TAGS and part in TAG_NAMES)]
    # the branches of other unions read `str` or `list[…]` or are named like our classes, which no field is
    parts = [str(part) for part in named if isinstance(part, int) or (part.isidentifier() and not part[0].isupper())]
    while len(parts) > 1 and parts[-1] in ("str", "int", "float", "bool"):
        parts.pop()
    return _shorten(".".join(parts))


def _given(value: object) -> str:
    """What was given, where it is short enough to show."""
    names = {"dict": "an object", "list": "a list", "NoneType": "null"}
    if isinstance(value, bool):
        return f" (given: {str(value).lower()})"
    if isinstance(value, int | float | str):
        return f" (given: {_shorten(repr(value))})"
    return f" (given: {names.get(type(value).__name__, type(value).__name__)})"


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_NAME_CHARACTERS else text[:MAX_NAME_CHARACTERS] + "…"


def _lower_first(text: str) -> str:
    words = {"False": "false", "True": "true", "None": "null"}
    text = re.sub(r"\b(False|True|None)\b", lambda match: words[match.group()], text)
    return text[:1].lower() + text[1:] if not text[:2].isupper() else text
