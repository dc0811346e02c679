"""The words of JSON Schema: which constrain, which only describe, and which no grammar can enforce.

Separate because this is a table and its reading of one node at a time; `schema.py` puts nodes together. Every word that
is not listed here describes: `title`, `examples`, `$comment`, `readOnly`, `x-…` constrain nothing and are dropped.
"""

from collections.abc import Mapping
from typing import Any

from model.constraint.errors import UnenforceablePatternError, UnsatisfiableError
from model.constraint.patterns import schema_pattern
from model.constraint.place import Place

Schema = dict[str, Any]

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
OBJECT_KEYWORDS = (
    "properties",
    "patternProperties",
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
    "required",
    "minProperties",
    "maxProperties",
)
ARRAY_KEYWORDS = ("items", "prefixItems", "unevaluatedItems", "minItems", "maxItems")
STRING_KEYWORDS = ("minLength", "maxLength", "pattern", "format")
NUMBER_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS = ("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_OBJECTS = ("properties", "patternProperties", "dependentRequired", "dependentSchemas", "dependencies")
_OTHERS = ("$ref", "type", "enum", "const", "discriminator")
_KEPT = {*OBJECT_KEYWORDS, *ARRAY_KEYWORDS, *STRING_KEYWORDS, *NUMBER_KEYWORDS, *_LISTS, *_OBJECTS, *_OTHERS}
# The others (password, binary, iri, …) say how a text is meant and constrain nothing here.
ENFORCED_FORMATS = {
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid",
}  # fmt: skip
_REFUSED = {
    "not": "say with enum, pattern or anyOf what is allowed",
    "if": "give the cases as anyOf",
    "uniqueItems": "leave it out, or list the items as boolean properties",
    "contains": "leave it out, or give the first items as prefixItems",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
}


def constraining(node: Mapping[str, Any], place: Place) -> Schema:
    """The constraining keywords of one schema, in the words of draft 2020-12; what it holds is not looked into.

    Raises:
        ConstraintError: it has a word that cannot be enforced, or one whose value is no such thing.
        UnsatisfiableError: by itself nothing can match it.
    """
    given = {key: value for key, value in node.items() if value is not None or key == "const"}
    _refuse(given, place)
    _modernise(given)
    kept = {key: value for key, value in given.items() if key in _KEPT}
    for key in list(kept):
        _check_value(kept, key, place)
    return kept


def _refuse(given: Schema, place: Place) -> None:
    harmless = {
        "uniqueItems": given.get("uniqueItems") is False or given.get("maxItems") in (0, 1),
        "if": "then" not in given and "else" not in given,
        "contains": given.get("minContains") == 0 and "maxContains" not in given,
        "not": "not" in given and _is_never(given["not"], place),
    }
    for key, advice in _REFUSED.items():
        if key in given and not harmless.get(key, False):
            raise place.error(f'"{key}" cannot be enforced; {advice}')


def _is_never(negated: Any, place: Place) -> bool:
    """Whether what `not` speaks of is impossible.

    Raises:
        UnsatisfiableError: it is anything, so that nothing is left.
    """
    try:
        is_any = negated is True or (isinstance(negated, Mapping) and not constraining(negated, place))
    except UnsatisfiableError:
        return True
    if is_any:
        raise place.unsatisfiable('"not" of anything')
    return negated is False


def _modernise(given: Schema) -> None:
    """Words of older drafts, in place: lists of items, exclusive bounds that are booleans, `required: true`."""
    for key in _OBJECTS:
        if given.get(key) == []:  # PHP's empty object
            given[key] = {}
    if isinstance(given.get("properties"), Mapping):
        empty: Schema = {name: {} for name, schema in given["properties"].items() if schema is None or schema == []}
        given["properties"] = {**given["properties"], **empty}
    if isinstance(given.get("items"), list):
        given["prefixItems"] = given.pop("items")
        if "additionalItems" in given:
            given["items"] = given["additionalItems"]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(given.get(exclusive), bool):
            is_exclusive = given.pop(exclusive)
            if is_exclusive and bound in given:
                given[exclusive] = given.pop(bound)
    if isinstance(given.get("required"), bool):
        del given["required"]
    if not isinstance(given.get("format", ""), str) or given.get("format") not in ENFORCED_FORMATS:
        given.pop("format", None)
    if "unevaluatedItems" in given:
        given.setdefault("items", given.pop("unevaluatedItems"))


def _check_value(kept: Schema, key: str, place: Place) -> None:
    """Refuse a value of the wrong kind; write patterns and counts as the grammar's compiler reads them."""
    value = kept[key]
    if key == "type":
        _check_types(value, place)
    elif key in _COUNTS:
        kept[key] = _count(key, value, place)
    elif key in NUMBER_KEYWORDS and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise place.error(f"{key} must be a number, not {value!r:.80}")
    elif key in _OBJECTS and not isinstance(value, Mapping):
        raise place.error(f"{key} must be an object, not {value!r:.80}")
    elif key in _LISTS and not isinstance(value, list | tuple):
        raise place.error(f"{key} must be a list of schemas, not {value!r:.80}")
    elif key == "enum" and not isinstance(value, list | tuple):
        raise place.error(f"enum must be a list of values, not {value!r:.80}")
    elif key in ("anyOf", "oneOf", "enum") and not value:
        raise place.unsatisfiable(f"{key} must be a list with at least one entry")
    elif key == "required" and not (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)):
        raise place.error(f"required must be a list of names, not {value!r:.80}")
    elif key == "pattern":
        kept[key] = checked_pattern(value, place)
    elif key == "$ref" and not isinstance(value, str):
        raise place.error(f"$ref must be a text, not {value!r:.80}")


def checked_pattern(pattern: Any, place: Place) -> str:
    """A pattern in the compiler's syntax.

    Raises:
        ConstraintError: it is no text, or uses what cannot be enforced.
    """
    if not isinstance(pattern, str):
        raise place.error(f"pattern must be a text, not {pattern!r:.80}")
    try:
        return schema_pattern(pattern)
    except UnenforceablePatternError as error:
        raise UnenforceablePatternError(f"{place}: {error}") from error


def _check_types(value: Any, place: Place) -> None:
    for name in value if isinstance(value, list | tuple) else [value]:
        if name not in TYPES:
            raise place.error(f"type is {name!r:.80}; it must be one of {', '.join(TYPES)}, or left out for any")


def _count(key: str, value: Any, place: Place) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise place.error(f"{key} must be a whole number from 0, not {value!r:.80}")
    return int(value)
