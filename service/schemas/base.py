"""What all wire models share: strictness, text without lone surrogates, token ids, error bodies, token counts.

Strict on purpose: a number in quotes, an unknown field or NaN is refused with a message, never guessed at or ignored.
"""

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_INTEGER = 2**31 - 1
MAX_JSON_DEPTH = 64


def refusal(field: str, message: str) -> PydanticCustomError:
    """An error for validators that look at several fields: it names the one at fault."""
    return PydanticCustomError("refused", "{message}", {"message": message, "field": field})


def refuse_surrogates(text: str) -> str:
    """A lone half of a UTF-16 pair is no character: JSON can spell it, UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise PydanticCustomError("surrogate", "text has a lone surrogate, which is not a character") from None
    return text


def _refuse_extremes(value: dict[str, Any]) -> dict[str, Any]:
    """Free-form JSON is bounded, so that nothing that walks it, computes with it or writes it again fails."""
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [inner for item in level for inner in _children(item)]
        if not level:
            return value
    raise PydanticCustomError("depth", f"JSON is nested deeper than {MAX_JSON_DEPTH} levels")


def _children(item: Any) -> list[Any]:
    """What an object or array holds; refuses what it is itself."""
    if isinstance(item, str):
        refuse_surrogates(item)
    elif isinstance(item, int) and not -(2**63) <= item < 2**63:
        raise PydanticCustomError("number", "a whole number in JSON must fit in 64 bits")
    elif isinstance(item, float) and not math.isfinite(item):
        raise PydanticCustomError("number", "a number in JSON must be finite")
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    return item if isinstance(item, list) else []


Text = Annotated[str, AfterValidator(refuse_surrogates)]
TokenId = Annotated[int, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)]  # the engine checks it against the vocabulary
TokenCount = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_refuse_extremes)]


class WireModel(BaseModel):
    """Base of every request body and its parts. A null stands for a field's default, as clients send it."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, data: Any) -> Any:
        if not isinstance(data, dict) or None not in data.values():
            return data
        optional = {info.alias or name for name, info in cls.model_fields.items() if not info.is_required()}
        return {name: value for name, value in data.items() if value is not None or name not in optional}


class ErrorDetail(BaseModel):
    """What went wrong: for people (`message`), for programs (`type`, `code`), and the field at fault (`param`)."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class PromptTokensDetails(BaseModel):
    """cached_tokens: prompt tokens that were not computed, because their keys and values were known."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts of a request; a prompt that several answers continue counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
