"""The base of all wire models: how nulls, numbers and unknown members are read, error bodies, token counts.

Strict where a field changes the answer: a number in quotes, a misspelt field or NaN is refused with a message, never
guessed at. Kind where it does not: null is absence, 8.0 is the integer 8, labels and hints are dropped
(`field_rules.py`), and so is whatever a conversation has beside its texts (`HistoryModel`).
"""

import json
import math
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from service.schemas.field_rules import is_without_effect, refusal_reason

MAX_INTEGER = 2**31 - 1
MAX_JSON_DEPTH = 64
MAX_MEMBERS = 1024  # of a body or one of its objects; the longest list of known fields has about 60


Json = TypeVar("Json")


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


def _refuse_extremes(value: Json) -> Json:
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


def json_text(value: Any) -> str:
    """Free-form JSON written again, in bounds in which nothing fails."""
    return json.dumps(_refuse_extremes(value), ensure_ascii=False)


def _whole(value: Any) -> Any:
    """8.0 is 8, as JavaScript and JSON schema have it."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value


def _minus_one_is_none(value: Any) -> Any:
    """-1 stands for no limit and no seed, as llama.cpp and others read it."""
    return None if _whole(value) == -1 else _whole(value)


def _whole_items(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """A list of token ids; looks at each only if one of them is not written as an integer."""
    try:
        return validate(value)
    except ValidationError:
        if isinstance(value, list) and any(isinstance(item, float) for item in value):
            return validate([_whole(item) for item in value])
        raise


WHOLE = BeforeValidator(_whole)
MINUS_ONE_IS_NONE = BeforeValidator(_minus_one_is_none)
Text = Annotated[str, AfterValidator(refuse_surrogates)]
Integer = Annotated[int, WHOLE]
OptionalInteger = Annotated[int | None, WHOLE]
TokenId = Annotated[int, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)]  # the engine checks it against the vocabulary
TokenIdList = Annotated[list[TokenId], Field(fail_fast=True), WrapValidator(_whole_items)]
TokenLimit = Annotated[Annotated[int, Field(ge=1, le=MAX_INTEGER)] | None, MINUS_ONE_IS_NONE]
Seed = Annotated[Annotated[int, Field(ge=-(2**63), lt=2**63)] | None, MINUS_ONE_IS_NONE]
JsonObject = Annotated[dict[str, Any], AfterValidator(_refuse_extremes)]
JsonValue = Annotated[Any, AfterValidator(_refuse_extremes)]


def _check_number_of_members(data: dict[str, Any]) -> None:
    if len(data) > MAX_MEMBERS:
        raise PydanticCustomError("members", f"an object has {len(data)} members; at most {MAX_MEMBERS} are read")


def _without_nulls(value: Any) -> Any:
    """A list without its nulls; what is inside of other values is read where they are."""
    return [item for item in value if item is not None] if isinstance(value, list) and None in value else value


class WireModel(BaseModel):
    """Base of every request body and its parts: null is absence, whatever the member; unknown members are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absence(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        _check_number_of_members(data)
        return {name: _without_nulls(value) for name, value in data.items() if value is not None}


class HistoryModel(WireModel):
    """Base of what a conversation consists of. Members that no chat template reads are dropped, whatever they hold."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class RequestBody(WireModel):
    """Base of every request body. Labels and hints are dropped; unknown fields are kept apart, for the API to judge.

    The rule for fields that a body does not have is in `field_rules.py`.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})

    @model_validator(mode="before")
    @classmethod
    def _drop_what_has_no_effect(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        _check_number_of_members(data)
        known = cls.known_fields()
        extra = [name for name, value in data.items() if name not in known and value is not None]
        dropped = {name for name in extra if is_without_effect(name, data[name], data)}
        for name in extra:
            if name not in dropped and (reason := refusal_reason(name)) is not None:
                raise PydanticCustomError("refused_field", "{reason}", {"reason": reason, "field": name})
        return {name: value for name, value in data.items() if name not in dropped} if dropped else data

    @classmethod
    def known_fields(cls) -> frozenset[str]:
        """The names of the fields as clients write them."""
        return frozenset(info.alias or name for name, info in cls.model_fields.items())

    @property
    def unknown_fields(self) -> tuple[str, ...]:
        """Names of fields that nobody knows, in the order in which they were sent."""
        return tuple(self.model_extra or ())


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
