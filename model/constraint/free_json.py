"""JSON of no particular form, bounded: how large it may grow where a schema says nothing.

Separate because a small model, left alone, goes on with digits, items or properties up to the length limit.
"""

from typing import Any

from model.constraint.numbers import bounded_number
from model.constraint.place import Place

MAX_ADDED_PROPERTIES = 32  # of an object beside those it lists, unless its maxProperties or minProperties say more
MAX_FREE_ITEMS = 32
MAX_FREE_CHARACTERS = 1_000
MAX_FREE_DEPTH = 5

FREE_JSON = {"$ref": "#/$defs/free1"}


def free_json_definitions() -> dict[str, Any]:
    """Definitions of any JSON, free1 to free5: values of one hold values of the next. free0 is a number."""
    scalars = [
        {"type": "string", "maxLength": MAX_FREE_CHARACTERS},
        {"$ref": "#/$defs/free0"},
        {"type": ["boolean", "null"]},
    ]
    definitions: dict[str, Any] = {
        "free0": bounded_number({"type": "number"}, Place("JSON of any form")),
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
