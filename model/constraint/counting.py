"""How many properties an object has: `minProperties` and `maxProperties`, made exact.

Separate because the compiler counts only where all listed properties are required. Elsewhere the object becomes
alternatives, or is narrowed: optional properties are required, or others left out, so that every answer still fits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from model.constraint.free_json import MAX_ADDED_PROPERTIES
from model.constraint.keywords import Schema
from model.constraint.place import Place

MAX_BRANCHES = 64


@dataclass(frozen=True)
class Counts:
    """Fewest and most properties of an object in all; most: inf where nothing is said."""

    fewest: int = 0
    most: float = math.inf


def counted(node: Schema, counts: Counts, place: Place) -> Schema:
    """An object (`properties`, `required`, `additionalProperties`, perhaps `patternProperties`) with these counts.

    Raises:
        UnsatisfiableError: nothing has so many properties. ConstraintError: they cannot be enforced.
    """
    optional = [name for name in node["properties"] if name not in node["required"]]
    num_required, num_listed = len(node["required"]), len(node["properties"])
    can_add = node["additionalProperties"] is not False or "patternProperties" in node
    if counts.most < max(num_required, counts.fewest) or (not can_add and counts.fewest > num_listed):
        raise place.unsatisfiable("may not have as many properties as it must")
    if not can_add:
        is_any = counts.fewest <= num_required and counts.most >= num_listed
        return node if is_any else _alternatives(node, optional, counts, place)
    if not optional:
        return _bounded(node, counts, place)
    if counts.most < num_listed:
        closed = {key: value for key, value in node.items() if key != "patternProperties"}
        return counted({**closed, "additionalProperties": False}, counts, place)
    if counts.most < math.inf or counts.fewest > num_listed:
        return _bounded(_requiring(node, optional), counts, place)
    num_missing = counts.fewest - num_required
    if num_missing == 1:
        return {"anyOf": [_requiring(node, [name]) for name in optional[:MAX_BRANCHES]]}
    return _requiring(node, optional[: max(num_missing, 0)])


def most_properties(schema: Any) -> int:
    """The most properties that any object of a prepared schema may have, as far as it says so."""
    if isinstance(schema, list):
        return max(map(most_properties, schema), default=0)
    if not isinstance(schema, dict):
        return 0
    properties = schema.get("properties")
    listed = len(properties) + MAX_ADDED_PROPERTIES if isinstance(properties, dict) else 0
    most = schema.get("maxProperties")
    return max(listed, most if isinstance(most, int) else 0, *map(most_properties, schema.values()), 0)


def _bounded(node: Schema, counts: Counts, place: Place) -> Schema:
    """An object whose listed properties are all required: the compiler counts those that it adds."""
    num_listed = len(node["properties"])
    if any(value is False for value in node["properties"].values()):
        raise place.error(
            '"minProperties" and "maxProperties" beside forbidden properties cannot be enforced; drop them'
        )
    if node["additionalProperties"] is False and counts.fewest - num_listed > 1:
        raise place.error(
            f'"minProperties" {counts.fewest} with names by pattern cannot be enforced; list the properties instead'
        )
    most = counts.most if counts.most < math.inf else num_listed + max(MAX_ADDED_PROPERTIES, counts.fewest)
    return {**node, "minProperties": counts.fewest, "maxProperties": int(most)}


def _alternatives(node: Schema, optional: Sequence[str], counts: Counts, place: Place) -> Schema:
    """A closed object once for each set of optional properties that makes the number right."""
    num_required = len(node["required"])
    if counts.fewest == num_required + 1 and counts.most >= len(node["properties"]):
        firsts = list(enumerate(optional))  # one branch for each optional property that may be the first there is
        return {"anyOf": [_requiring(_without(node, optional[:index]), [name]) for index, name in firsts]}
    sizes = range(max(counts.fewest - num_required, 0), int(min(counts.most - num_required, len(optional))) + 1)
    if sum(math.comb(len(optional), size) for size in sizes) > MAX_BRANCHES:
        message = '"minProperties" and "maxProperties" of so many optional properties cannot be enforced; require some'
        raise place.error(message)
    chosen = [names for size in sizes for names in combinations(optional, size)]
    return {
        "anyOf": [
            _requiring(_without(node, [name for name in optional if name not in names]), names) for names in chosen
        ]
    }


def _requiring(node: Schema, names: Sequence[str]) -> Schema:
    wanted = {*node["required"], *names}
    return {**node, "required": [name for name in node["properties"] if name in wanted]}


def _without(node: Schema, names: Sequence[str]) -> Schema:
    return {**node, "properties": {name: value for name, value in node["properties"].items() if name not in names}}
