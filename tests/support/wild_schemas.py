"""Random JSON schemas as wild as people's: references, compositions, open objects, counts; same seed, same schema.

Separate from `random_schemas.py`, whose schemas always have short answers: these may contradict themselves, and their
answers may be long. What they are good for: whatever is written for one of them must fit it.
"""

import random
from typing import Any

Schema = dict[str, Any]

NAMES = "abcdef"
MAX_DEPTH = 2


class WildSchemas:
    """Makes one document from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def document(self) -> Schema:
        """A schema with two definitions."""
        root = self._object(0) if self._is(0.7) else self._any(0)
        root = root if isinstance(root, dict) else {}
        return {**root, "$defs": {"p": self._object(1), "q": self._any(1)}}

    def _is(self, probability: float) -> bool:
        return self._random.random() < probability

    def _any(self, depth: int) -> Any:
        if depth > MAX_DEPTH or self._is(0.5):
            return self._leaf()
        makers = [self._object] * 4 + [
            self._array,
            self._any_of,
            self._one_of,
            self._all_of,
            self._reference,
            self._base,
        ]
        return self._random.choice(makers)(depth + 1)

    def _leaf(self) -> Any:
        choose = self._random
        leaves: list[Any] = [
            {"type": "string", "maxLength": choose.randint(0, 4)},
            {"type": "string", "pattern": choose.choice([r"^\d{2}$", r"^[\w.]{1,3}$", "^(a|b)+$"]), "maxLength": 5},
            {"type": "string", "format": choose.choice(["date", "password", "uuid"])},
            {"type": "integer", "minimum": 0, "maximum": choose.randint(0, 30)},
            {"type": ["integer", "null"], "maximum": 9},
            {"type": "number"},
            {"enum": choose.sample([1, "x", None, True, "y"], choose.randint(1, 3))},
            {"const": choose.choice([1, "k", None])},
            {"type": "boolean"},
            {},
            True,
        ]
        return choose.choice(leaves)

    def _object(self, depth: int) -> Schema:
        names = self._random.sample(NAMES, self._random.randint(0, 4))
        schema: Schema = {"properties": {name: self._any(depth + 1) for name in names}}
        schema |= {"type": "object"} if self._is(0.7) else {}
        schema |= {"required": self._random.sample(names, self._random.randint(0, len(names)))} if self._is(0.6) else {}
        schema |= {"required": ["zz"]} if self._is(0.05) else {}
        if self._is(0.4):
            schema["additionalProperties"] = self._random.choice([True, False, self._any(depth + 1)])
        if self._is(0.15):
            schema["patternProperties"] = {self._random.choice(["^x", r"^\d$", "^(foo|bar)$"]): self._any(depth + 1)}
        schema |= {"minProperties": self._random.randint(0, 4)} if self._is(0.15) else {}
        schema |= {"maxProperties": self._random.randint(0, 4)} if self._is(0.1) else {}
        if self._is(0.1):
            rules = [{"type": "string"}, {"pattern": "^[a-c]"}, {"enum": ["a", "b", "q"]}, {"maxLength": 2}, True]
            schema["propertyNames"] = self._random.choice(rules)
        if names and self._is(0.1):
            schema["dependentRequired"] = {self._random.choice(names): [self._random.choice(NAMES)]}
        schema |= {"title": "T", "$comment": "c", "x-order": 1} if self._is(0.1) else {}
        return schema

    def _array(self, depth: int) -> Schema:
        kinds: list[Schema] = [
            {"type": "array", "items": self._any(depth), "maxItems": self._random.randint(0, 3)},
            {"type": "array", "prefixItems": [self._any(depth)], "maxItems": 3},
            {"type": "array"},
        ]
        return self._random.choice(kinds)

    def _any_of(self, depth: int) -> Schema:
        return {"anyOf": [self._any(depth) for _ in range(self._random.randint(1, 3))]}

    def _one_of(self, depth: int) -> Schema:
        return {"oneOf": [self._any(depth) for _ in range(self._random.randint(1, 3))]}

    def _all_of(self, depth: int) -> Schema:
        beside = self._object(depth) if self._is(0.4) else {}
        return {**beside, "allOf": [self._object(depth) for _ in range(self._random.randint(1, 3))]}

    def _base(self, depth: int) -> Schema:
        return {**self._object(depth), "anyOf": [self._object(depth), self._object(depth)]}

    def _reference(self, depth: int) -> Schema:
        beside = {"properties": {"w": self._any(depth)}} if self._is(0.5) else {}
        return {**beside, "$ref": self._random.choice(["#/$defs/p", "#/$defs/q"])}
