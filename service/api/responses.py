"""How answers are written: JSON bytes without a second validation, and the errors every route documents."""

from typing import Any

import orjson
from fastapi import Response
from pydantic import BaseModel

from service.schemas.base import ErrorBody

Errors = dict[int | str, dict[str, Any]]
KEY_ERRORS: Errors = {
    401: {"model": ErrorBody, "description": "The API key is missing or wrong."},
    431: {"model": ErrorBody, "description": "The request's headers are too large."},
}
REQUEST_ERRORS: Errors = {
    400: {"model": ErrorBody, "description": "The request is invalid; `param` names the field."},
    **KEY_ERRORS,
    403: {"model": ErrorBody, "description": "A web page of another origin sent something not declared as JSON."},
    404: {"model": ErrorBody, "description": "Unknown model."},
    413: {"model": ErrorBody, "description": "The request body is too large."},
    415: {"model": ErrorBody, "description": "The request body is compressed in a way that is not read."},
    500: {"model": ErrorBody, "description": "The service failed."},
}
GENERATION_ANSWERS: Errors = {
    200: {"content": {"text/event-stream": {}}, "description": "The answer; with `stream`, server-sent events."},
    **REQUEST_ERRORS,
    408: {"model": ErrorBody, "description": "The request's deadline passed."},
    429: {"model": ErrorBody, "description": "The queue is full, or a limit is reached; see `Retry-After`."},
    503: {"model": ErrorBody, "description": "Not ready, or shutting down; see `Retry-After`."},
}


def json_response(body: BaseModel, *, headers: dict[str, str] | None = None, leaves_out: Any = None) -> Response:
    """A wire model as an HTTP answer. leaves_out: fields not to send, as pydantic's `exclude`."""
    return Response(orjson.dumps(body.model_dump(exclude=leaves_out)), 200, headers, media_type="application/json")
