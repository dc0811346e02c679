"""Pydantic's violations of a body, in one line: which field, what was given, what is allowed.

Separate from the table of errors because a location in a schema is not one in the body: unions add the names of their
branches, which no client has ever seen. The body itself tells them apart.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

MAX_NAME_CHARACTERS = 100  # of a client's own text repeated in a message
NO_OBJECT = "the request body must be a JSON object with Content-Type: application/json"
TOLD_IN_FULL = {"refused", "refused_field"}  # errors of ours, whose messages say everything
# Errors of the member that says which kind a part or an item is.
TYPE_ERRORS = {"union_tag_invalid", "union_tag_not_found", "part_type", "item_type"}

Location = Sequence[int | str]


class Violation(NamedTuple):
    """param: the field at fault, if it is one. code: for programs."""

    param: str | None
    message: str
    code: str


def first_violation(violations: Sequence[Any], body: Any) -> Violation:
    """The most telling of pydantic's violations of a body."""
    first = _most_telling(violations, body)
    context = first.get("ctx", {})
    if first["type"] == "json_invalid":
        return Violation(
            None, f"the request body is not valid JSON: {context.get('error', 'not JSON')}", "invalid_json"
        )
    path = path_in(body, first["loc"])
    if first["type"] in TOLD_IN_FULL:
        name = _dotted([*path, context["field"]])
        if first["type"] == "refused_field":
            return Violation(name, f"{name} is not a field of this request: {context['reason']}", "unknown_field")
        return Violation(name, str(first["msg"]), "invalid_value")
    if first["type"] in ("missing", "extra_forbidden"):
        own_name = [first["loc"][-1]] if list(first["loc"][-1:]) != path[-1:] else []
        return _missing_or_unknown(first["type"], _dotted([*path, *own_name]))
    if first["type"] in TYPE_ERRORS and isinstance(first.get("input"), dict):
        path = [*path, context.get("discriminator", "type").strip("'")]
    if not path:
        return Violation(None, str(first["msg"]) if isinstance(body, dict) else NO_OBJECT, "invalid_json")
    return Violation(_dotted(path), f"{_dotted(path)}: {_reason(first)}{_given(first.get('input'))}", "invalid_value")


def path_in(body: Any, location: Location) -> list[int | str]:
    """The parts of a location in a schema that exist in the body; the others name branches of unions."""
    path: list[int | str] = []
    here = body
    for part in location:
        is_key = isinstance(here, dict) and part in here and str(part).isidentifier()  # no key of a map of token ids
        if is_key or (isinstance(here, list) and isinstance(part, int) and part < len(here)):
            path.append(part)
            here = here[part]
    return path


def shortened(text: str) -> str:
    """A client's own text, short enough for a message."""
    return text if len(text) <= MAX_NAME_CHARACTERS else text[:MAX_NAME_CHARACTERS] + "…"


def _missing_or_unknown(kind: str, name: str) -> Violation:
    if kind == "missing":
        if name == "body":
            return Violation(None, NO_OBJECT, "invalid_json")
        return Violation(name, f"{name} is missing", "missing_field")
    return Violation(name, f"{name} is not a field of this request", "unknown_field")


def _most_telling(violations: Sequence[Any], body: Any) -> Any:
    """Of the first field's violations, the one that got furthest.

    Where a field may be of several types, the others only say that it is of another type.
    """
    field_name = violations[0]["loc"][:2]
    same_field = [violation for violation in violations if violation["loc"][:2] == field_name]
    return max(same_field, key=lambda violation: _telling(violation, body))


def _telling(violation: Any, body: Any) -> tuple[bool, int, bool]:
    """A list of a wrong length is one of the right type, whatever its items would be to the other types."""
    kind = violation["type"]
    depth = len(path_in(body, violation["loc"])) + (kind == "missing")
    return kind in ("too_long", "too_short"), depth, not kind.endswith("_type")


def _dotted(path: Location) -> str:
    """`messages.0.role`."""
    return shortened(".".join(map(str, path)))


def _reason(violation: Any) -> str:
    reason = _lower_first(str(violation["msg"]))
    if isinstance(violation.get("input"), str):  # pydantic's words for a text that something has checked before
        reason = re.sub(r"\bitem(s?) after validation", r"character\1", reason)
    return reason


def _given(value: object) -> str:
    """The value as it was given, where it is short enough to show; of a part or item, its type."""
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        return f" (given: {shortened(repr(value['type']))})"
    names = {"dict": "an object", "list": "a list", "NoneType": "null"}
    if isinstance(value, bool):
        return f" (given: {str(value).lower()})"
    if isinstance(value, int | float | str):
        return f" (given: {shortened(repr(value))})"
    return f" (given: {names.get(type(value).__name__, type(value).__name__)})"


def _lower_first(text: str) -> str:
    words = {"False": "false", "True": "true", "None": "null"}
    text = re.sub(r"\b(False|True|None)\b", lambda match: words[match.group()], text)
    return text[:1].lower() + text[1:] if not text[:2].isupper() else text
