"""Which definitions of a prepared schema have an answer that ends: not those that require themselves for ever.

Separate because it needs all definitions at once, when `schema.py` has made them.
"""

from collections.abc import Collection, Mapping
from typing import Any


def endless_definitions(definitions: Mapping[str, Any]) -> set[str]:
    """The names of definitions that nothing of finite length matches."""
    ending: set[str] = set()
    while True:
        more = {name for name in definitions.keys() - ending if can_end(definitions[name], ending)}
        if not more:
            return definitions.keys() - ending
        ending |= more


def can_end(schema: Any, ending: Collection[str]) -> bool:
    """Whether something of finite length matches. ending: definitions of which that is known."""
    if not isinstance(schema, Mapping):
        return schema is not False
    if "$ref" in schema and schema["$ref"].rpartition("/")[2] not in ending:
        return False
    for key in ("anyOf", "oneOf"):
        if key in schema and not any(can_end(branch, ending) for branch in schema[key]):
            return False
    types = schema.get("type")
    if isinstance(types, list) and set(types) - {"object", "array"}:
        return True  # a scalar will do
    properties = schema.get("properties", {})
    needed = [properties.get(name, True) for name in schema.get("required", ())]
    needed += schema.get("allOf", ())
    needed += [schema.get("items", True)] if schema.get("minItems", 0) > len(schema.get("prefixItems", ())) else []
    needed += schema.get("prefixItems", ())[: schema.get("minItems", 0)]
    return all(can_end(inner, ending) for inner in needed)
