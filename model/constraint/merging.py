"""Several schemas that hold together, as one: pure functions on nodes whose words `keywords.py` has read."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.constraint.keywords import (
    ARRAY_KEYWORDS,
    NUMBER_KEYWORDS,
    OBJECT_KEYWORDS,
    STRING_KEYWORDS,
    Schema,
)
from model.constraint.numbers import has_numbers

_TIGHTER: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minItems", "minLength"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxItems", "maxLength"), min),
    "items": lambda one, other: all_of([one, other]),
    "enum": lambda one, other: [value for value in one if _text(value) in {_text(known) for known in other}],
}
_TYPE_OF_KEYWORDS = {
    "object": OBJECT_KEYWORDS,
    "array": ARRAY_KEYWORDS,
    "string": STRING_KEYWORDS,
    "number": NUMBER_KEYWORDS,
}


def all_of(schemas: Sequence[Any]) -> Any:
    """The schema of what fits all of these."""
    if any(schema is False for schema in schemas):
        return False
    different = list({_text(schema): schema for schema in schemas if schema is not True and schema != {}}.values())
    if not different:
        return True
    return different[0] if len(different) == 1 else {"allOf": different}


def merged(parts: Sequence[Schema]) -> Schema | None:
    """The parts in one node, but for their words on objects; None where they contradict each other."""
    node: Schema = {}
    further: list[Schema] = []
    for part in parts:
        for key, value in part.items():
            if key in OBJECT_KEYWORDS:
                continue
            if key == "type":
                node[key] = _common_types(node.get(key), value)
            elif key not in node or _text(node[key]) == _text(value):
                node[key] = value
            elif key in _TIGHTER:
                node[key] = _TIGHTER[key](node[key], value)
            else:
                further.append({key: value})
    if further:
        node["allOf"] = further
    is_possible = node.get("type") != [] and node.get("enum") != [] and node.get("items", True) is not None
    return node if is_possible else None


def inferred_types(node: Schema, parts: Sequence[Schema]) -> list[str]:
    """The types that a schema without `type` speaks of; others are not written, although it allows them."""
    words = {*node, *(key for part in parts for key in part)}
    return [name for name, keywords in _TYPE_OF_KEYWORDS.items() if words & set(keywords)]


def possible_types(node: Schema, types: Sequence[str]) -> list[str]:
    """Those of the types for which the bounds, lengths and counts of a schema leave something."""
    is_possible = {
        "integer": has_numbers(node, is_whole=True),
        "number": has_numbers(node, is_whole=False),
        "string": node.get("minLength", 0) <= node.get("maxLength", math.inf),
        "array": node.get("minItems", 0) <= node.get("maxItems", math.inf),
    }
    return [name for name in types if is_possible.get(name, True)]


def types_of(parts: Sequence[Schema]) -> list[str] | None:
    """The types that all parts allow; None for any."""
    types: list[str] | None = None
    for part in parts:
        if "type" in part:
            types = _common_types(types, part["type"])
    return types


@dataclass(frozen=True)
class Shape:
    """The marks that tell one branch of a `oneOf` from others.

    written: types that are written for it. allowed: types that fit it, None for any. names: of its properties, None
    where there may be others. forbidden: names that are never there. values: texts of the only values of a property.
    own: of the branch itself.
    """

    written: frozenset[str]
    allowed: frozenset[str] | None
    names: frozenset[str] | None
    forbidden: frozenset[str]
    required: frozenset[str]
    values: Mapping[str, frozenset[str]]
    own: frozenset[str] | None

    @classmethod
    def of(
        cls,
        parts: Sequence[Schema],
        properties: Mapping[str, Sequence[Schema]],
        forbidden: Collection[str],
        *,
        is_closed: bool,
    ) -> "Shape":
        """parts: of the branch. properties: the parts of each property. is_closed: no others are written."""
        types = types_of(parts)
        own = _finite(parts)
        written = types if types is not None or own is not None else inferred_types({}, parts)
        values = {name: finite for name, of_name in properties.items() if (finite := _finite(of_name)) is not None}
        return cls(
            written=frozenset(written or ()),
            allowed=None if types is None else frozenset(types),
            names=frozenset(properties).difference(forbidden) if is_closed else None,
            forbidden=frozenset(forbidden),
            required=frozenset(name for part in parts for name in part.get("required", ())),
            values=values,
            own=own,
        )

    def never_fits(self, other: "Shape") -> bool:
        """Whether nothing that is written for this branch fits another."""
        if self.own is not None and other.own is not None:
            return not self.own & other.own
        if self.written and other.allowed is not None and not _overlap(self.written, other.allowed):
            return True
        if self.written != {"object"}:
            return False
        if other.required & self.forbidden or (self.names is not None and other.required - self.names - self.required):
            return True
        shared = (self.required | other.required) & self.values.keys() & other.values.keys()
        return any(not self.values[name] & other.values[name] for name in shared)


def names_to_forbid(own: Sequence[Shape], others: Sequence[Shape]) -> list[str] | None:
    """Names without which what is written for a branch fits no other branch; None if there are none such."""
    names: set[str] = set()
    needed = frozenset.intersection(*(shape.required for shape in own)) if own else frozenset()
    for one in own:
        for other in others:
            if one.never_fits(other) or (one.written == {"object"} and names & other.required):
                continue
            free = other.required - needed
            if one.written != {"object"} or not free:
                return None
            names.add(min(free))
    return sorted(names)


def _finite(parts: Sequence[Schema]) -> frozenset[str] | None:
    """The texts of the only values that fit, None where there may be others."""
    for part in parts:
        if "const" in part:
            return frozenset([_text(part["const"])])
        if "enum" in part:
            return frozenset(map(_text, part["enum"]))
    return None


def _overlap(one: frozenset[str], other: frozenset[str]) -> bool:
    numbers = {"integer", "number"}
    return bool(one & other) or bool(one & numbers and other & numbers)


def _common_types(known: list[str] | None, given: str | Sequence[str]) -> list[str]:
    """Types that both allow; an integer is a number."""
    names = [given] if isinstance(given, str) else list(given)
    if known is None:
        return names
    common = [name for name in known if name in names or (name == "integer" and "number" in names)]
    return common + [name for name in names if name == "integer" and "number" in known and name not in common]


def _text(value: Any) -> str:
    """The same for equal JSON, and different for 1 and true, which Python takes for equal."""
    return json.dumps(value, sort_keys=True)
