"""JSON of no particular form, bounded: how large it may grow where a schema says nothing.

Separate because a small model, left alone, goes on with digits, items or properties up to the length limit.
"""

from collections.abc import Mapping
from typing import Any

MAX_ADDED_PROPERTIES = 32  # of an object beside those it lists, unless its maxProperties or minProperties say more
MAX_FREE_ITEMS = 32
MAX_FREE_CHARACTERS = 1_000
MAX_FREE_DEPTH = 5
_MOST_NUMBER = 10**15  # below 2**53, so that it is exact in llguidance's arithmetic
_NUMBER_STEP = 1e-6

FREE_JSON = {"$ref": "#/$defs/free1"}


def free_json_definitions() -> dict[str, Any]:
    """Definitions of any JSON, free1 to free5: values of one hold values of the next. free0 is a number."""
    scalars = [
        {"type": "string", "maxLength": MAX_FREE_CHARACTERS},
        {"$ref": "#/$defs/free0"},
        {"type": ["boolean", "null"]},
    ]
    definitions: dict[str, Any] = {
        "free0": bounded_number({"type": "number"}),
        f"free{MAX_FREE_DEPTH}": {"anyOf": scalars},
    }
    for depth in range(1, MAX_FREE_DEPTH):
        inner = {"$ref": f"#/$defs/free{depth + 1}"}
        containers = [
            {"type": "object", "additionalProperties": inner, "maxProperties": MAX_ADDED_PROPERTIES},
            {"type": "array", "items": inner, "maxItems": MAX_FREE_ITEMS},
        ]
        definitions[f"free{depth}"] = {"anyOf": [*scalars, *containers]}
    return definitions


def bounded_number(node: Mapping[str, Any]) -> dict[str, Any]:
    """A schema whose numbers have bounds where it leaves them open: a small model goes on with digits for ever.

    They reach to 10**15 either way, and have up to 6 digits behind the point.
    """
    types = node.get("type")
    names = types if isinstance(types, list) else [types]
    bounded = dict(node)
    if "enum" in node or "const" in node or not {"integer", "number"} & set(names):
        return bounded
    low = min(-_MOST_NUMBER, _number(node, "maximum"), _number(node, "exclusiveMaximum"))
    high = max(_MOST_NUMBER, _number(node, "minimum"), _number(node, "exclusiveMinimum"))
    if not {"minimum", "exclusiveMinimum"} & node.keys():
        bounded["minimum"] = low
    if not {"maximum", "exclusiveMaximum"} & node.keys():
        bounded["maximum"] = high
    least = max(_number(node, "minimum", low), _number(node, "exclusiveMinimum", low))
    room = min(_number(node, "maximum", high), _number(node, "exclusiveMaximum", high)) - least
    if "number" in names and "multipleOf" not in node and room > 100 * _NUMBER_STEP:
        bounded["multipleOf"] = _NUMBER_STEP
    return bounded


def _number(node: Mapping[str, Any], key: str, missing: float = 0) -> float:
    """A bound of a schema."""
    value = node.get(key, missing)
    return value if isinstance(value, int | float) else missing
