"""The words of objects: which properties there are when several schemas speak of one object, and which may be added.

Separate from `schema.py` because this is about names; what a property holds is prepared there.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model.constraint.keywords import Schema, checked_pattern
from model.constraint.merging import all_of, possible_types
from model.constraint.name_rules import as_one_pattern
from model.constraint.place import Place

_NAME_WORDS = {"type", "enum", "const", "pattern", "minLength", "maxLength"}


@dataclass(frozen=True)
class SchemaRules:
    """Which objects are closed. opens_objects: those that list properties are not, unless they say so.

    is_strict: all are, unless they say otherwise.
    """

    opens_objects: bool = False
    is_strict: bool = False


@dataclass(frozen=True)
class Names:
    """An object's properties. listed, patterns: what is said of each. added: the schema of others, False for none."""

    listed: dict[str, list[Any]]
    patterns: dict[str, Any]
    added: Any
    required: list[str]

    @classmethod
    def of(cls, parts: Sequence[Schema], rules: SchemaRules, place: Place) -> "Names":
        """Those that all parts together allow.

        Raises:
            ConstraintError: a pattern cannot be enforced.
        """
        listed, added = listed_properties(parts), added_properties(parts, rules)
        required = list(dict.fromkeys(name for part in parts for name in part.get("required", ())))
        for name in required:
            if name not in listed:
                listed[name] = [added if _says_added(parts) else True]
        patterns = {
            checked_pattern(pattern, place.property(pattern)): all_of(schemas)
            for pattern, schemas in _by_pattern(parts).items()
        }
        return cls(
            listed, {pattern: schema for pattern, schema in patterns.items() if schema is not False}, added, required
        )

    def is_free(self, pattern: str) -> bool:
        """Whether a pattern says nothing, and of names that are listed: then it must not narrow those."""
        return self.patterns[pattern] is True and any(_matches(pattern, name) for name in self.listed)

    def named(self, rule: Schema | None, place: Place) -> "Names":
        """The names that `propertyNames` leaves. rule: its words in one node; None where no name fits.

        Raises:
            ConstraintError: it cannot be enforced.
        """
        types = None if rule is None else rule.get("type") or ["string"]
        if rule is None or types is None or "string" not in possible_types(rule, types):
            return replace(self, listed={}, patterns={}, added=False)
        as_one = as_one_pattern(rule)
        rule = rule if as_one is None else as_one
        limits = rule.keys() - {"type"}
        if as_one is None or not rule.keys() <= _NAME_WORDS or (self.patterns and limits):
            raise place.error('"propertyNames" of this form cannot be enforced; use enum, or list the properties')
        kept = {name: schemas for name, schemas in self.listed.items() if _is_name(name, rule)}
        if self.added is False or not limits:
            return replace(self, listed=kept)
        if limits & {"enum", "const"}:
            names = rule.get("enum", [rule.get("const")])
            new = [name for name in names if isinstance(name, str) and name not in kept and _is_name(name, rule)]
            return replace(self, listed={**kept, **{name: [self.added] for name in new}}, added=False)
        if kept and self.added is not True:
            raise place.error(
                '"propertyNames" of this form cannot be enforced; use one pattern, or list the properties'
            )
        lengths = f"{{{rule.get('minLength', 0)},{rule.get('maxLength', '')}}}"
        pattern = rule.get("pattern", rf"^(?s:.){lengths}$")
        return replace(self, listed=kept, patterns={pattern: self.added}, added=False)


def listed_properties(parts: Sequence[Schema]) -> dict[str, list[Any]]:
    """Properties by name, each with all that is said of it, also by parts that speak of all others than their own."""
    listed: dict[str, list[Any]] = {}
    for part in parts:
        for name, schema in part.get("properties", {}).items():
            listed.setdefault(name, []).append(schema)
    for part in parts:
        if "additionalProperties" in part:
            own, patterns = part.get("properties", {}), part.get("patternProperties", {})
            for name, schemas in listed.items():
                if name not in own and not any(_matches(pattern, name) for pattern in patterns):
                    schemas.append(part["additionalProperties"])
    return listed


def _by_pattern(parts: Sequence[Schema]) -> dict[str, list[Any]]:
    """The same for names by pattern."""
    patterns: dict[str, list[Any]] = {}
    for part in parts:
        for pattern, schema in part.get("patternProperties", {}).items():
            patterns.setdefault(pattern, []).append(schema)
    for part in parts:
        if "additionalProperties" in part:
            for pattern in patterns.keys() - part.get("patternProperties", {}).keys():
                patterns[pattern].append(part["additionalProperties"])
    return patterns


def added_properties(parts: Sequence[Schema], rules: SchemaRules) -> Any:
    """The schema of properties that an object does not list; False where there are none."""
    for key in ("additionalProperties", "unevaluatedProperties"):
        said = [part[key] for part in parts if key in part]
        if said:
            return all_of(said)
    has_patterns = any("patternProperties" in part for part in parts)
    lists_any = has_patterns or any("properties" in part for part in parts)
    fewest = max((part.get("minProperties", 0) for part in parts), default=0)
    is_too_few = fewest > len(listed_properties(parts)) and not has_patterns
    return is_too_few or not (rules.is_strict or (lists_any and not rules.opens_objects))


def _says_added(parts: Sequence[Schema]) -> bool:
    return any(key in part for part in parts for key in ("additionalProperties", "unevaluatedProperties"))


def _matches(pattern: str, name: str) -> bool:
    """Whether a property's name matches; a pattern that Python does not read counts as one that does."""
    try:
        return re.search(pattern, name, re.ASCII) is not None
    except re.error:
        return True


def _is_name(name: str, rule: Mapping[str, Any]) -> bool:
    """Whether `propertyNames` allows a name."""
    return (
        rule.get("minLength", 0) <= len(name) <= rule.get("maxLength", math.inf)
        and ("pattern" not in rule or _matches(rule["pattern"], name))
        and name in rule.get("enum", [name])
        and name == rule.get("const", name)
    )
