"""How answers are written: JSON bytes without a second validation, and the errors every route documents."""

from typing import Any

import orjson
from fastapi import Response
from pydantic import BaseModel

from service.schemas import ErrorBody

GENERATION_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request is invalid; `param` names the field."},
    404: {"model": ErrorBody, "description": "Unknown model."},
    413: {"model": ErrorBody, "description": "The request body is too large."},
    429: {"model": ErrorBody, "description": "The queue is full; see `Retry-After`."},
    500: {"model": ErrorBody, "description": "The service failed."},
    503: {"model": ErrorBody, "description": "Not ready, or shutting down; see `Retry-After`."},
}


def json_response(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A wire model as an HTTP answer."""
    return Response(orjson.dumps(body.model_dump()), status, headers, media_type="application/json")
