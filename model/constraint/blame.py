"""Which property of which schema is at fault, when the compiler only says that something is.

Separate because it happens rarely, and by trying: each schema alone, then each property alone, down to the smallest
that fails.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from model.constraint.inline_json import inline_json
from model.constraint.keywords import Schema
from model.constraint.place import Place

_MOST_SECONDS = 1.0
_LISTS = ("anyOf", "oneOf", "allOf")

Failure = Callable[[str], str | None]


def place_at_fault(schemas: Sequence[tuple[str, Schema]], failure: Failure) -> tuple[str, str | None]:
    """The place of the error, as the beginning of a message ("" if it is not found), and the error there.

    schemas: each with its label. failure: the error of a grammar, None if it has none.
    """
    give_up_s = time.monotonic() + _MOST_SECONDS
    for label, schema in schemas:
        error = failure(f"start: {inline_json(schema)}")
        if error is not None:
            place, inner = _deepest(schema, Place(label), failure, give_up_s)
            return f"{place}: ", inner or error
    return "", None


def _deepest(schema: Schema, place: Place, failure: Failure, give_up_s: float) -> tuple[Place, str | None]:
    """The innermost schema that fails by itself, and its error."""
    definitions, seen = schema.get("$defs", {}), set()
    node: Any = schema
    error: str | None = None
    is_deeper = True
    while is_deeper:
        is_deeper = False
        for child, child_place in _children(node, place, definitions):
            if not isinstance(child, dict) or id(child) in seen or time.monotonic() > give_up_s:
                continue
            seen.add(id(child))
            inner = failure(f"start: {inline_json({'$defs': definitions, **child})}")
            if inner is not None:
                node, place, error, is_deeper = child, child_place, inner, True
                break
    return place, error


def _children(node: Schema, place: Place, definitions: Mapping[str, Any]) -> Iterator[tuple[Any, Place]]:
    """The schemas that a schema needs, each with its place."""
    for key in ("properties", "patternProperties"):
        for name, child in node.get(key, {}).items():
            yield child, place.property(name)
    yield node.get("additionalProperties"), place.property("*")
    yield node.get("items"), place.items()
    for child in node.get("prefixItems", ()):
        yield child, place.items()
    for key in _LISTS:
        for child in node.get(key, ()):
            yield child, place
    if "$ref" in node:
        yield definitions.get(node["$ref"].rpartition("/")[2]), place
