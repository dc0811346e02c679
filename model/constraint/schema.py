"""From a JSON schema as people write it to one that the grammar's compiler enforces to the letter.

Separate from the spec because this is most of the work: references and `allOf` are put together, objects that list
their properties are closed, free JSON gets bounds, and what cannot be enforced is refused by its name and place.
Whatever fits the schema made here fits the one given; the reverse need not hold.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from model.constraint.counting import Counts, counted, most_properties
from model.constraint.endings import can_end, endless_definitions
from model.constraint.errors import ConstraintError, UnenforceablePatternError, UnsatisfiableError
from model.constraint.free_json import FREE_JSON, MAX_FREE_ITEMS, free_json_definitions
from model.constraint.keywords import OBJECT_KEYWORDS, Schema, constraining
from model.constraint.merging import Shape, all_of, inferred_types, merged, names_to_forbid, possible_types
from model.constraint.numbers import bounded_number
from model.constraint.objects import Names, SchemaRules, added_properties, listed_properties
from model.constraint.place import Place
from model.constraint.references import resolved

MAX_NODES = 10_000  # schemas that one is put together from: alternatives of alternatives multiply
MAX_REFERENCES_IN_LINE = 64
MAX_TOGETHER = 100  # schemas that speak of one value
_MOST_EXCLUSIVE_BRANCHES = 64
_MOST_WAYS = 64  # through the alternatives inside one
_MOST_SHAPES = 256  # of all of them


@dataclass(frozen=True)
class PreparedSchema:
    """A schema for the compiler. most_keys: of one object, None where no object may name its own."""

    schema: Schema
    most_keys: int | None


@dataclass(frozen=True)
class _Choice:
    """An `anyOf`, or a `oneOf` (is_exclusive)."""

    branches: Sequence[Any]
    is_exclusive: bool = False


@dataclass(frozen=True)
class _Definition:
    """A schema that refers to others, to be prepared once. place: of its first use."""

    name: str
    node: Schema
    place: Place


@dataclass
class _Together:
    """The demands of one schema and of all that it refers to by `$ref` and `allOf`."""

    parts: list[Schema] = field(default_factory=list)
    choices: list[_Choice] = field(default_factory=list)
    is_impossible: bool = False


def prepared_schema(document: Mapping[str, Any], label: str, rules: SchemaRules, prefix: str = "") -> PreparedSchema:
    """The schema in a form that is enforced exactly. prefix: of its definitions' names.

    Raises:
        ConstraintError: it cannot be; the message names the property.
    """
    return _Preparation(document, Place(label), rules, prefix).run()


class _Preparation:
    """One document on its way."""

    def __init__(self, document: Mapping[str, Any], place: Place, rules: SchemaRules, prefix: str) -> None:
        self._document = document
        self._place = place
        self._rules = rules
        self._prefix = prefix
        self._impossible: set[str] = set()  # texts of definitions that nothing matches
        self._start()

    def _start(self) -> None:
        self._definitions: dict[str, _Definition] = {}  # by text
        self._numbers: dict[str, Schema] = {}  # by the name of their definition
        self._num_nodes = 0
        self._may_name_keys = False

    def run(self) -> PreparedSchema:
        """The root and every definition that it needs; once more where a definition turns out to be impossible."""
        while True:
            root, definitions = self._attempt()
            endless = endless_definitions(definitions)
            if root is False or not can_end(root, definitions.keys() - endless):
                raise self._place.unsatisfiable("it contradicts or requires itself")
            if not endless:
                break
            self._impossible |= {text for text, each in self._definitions.items() if each.name in endless}
            self._start()
        schema = {"$defs": definitions, **root} if definitions else root
        return PreparedSchema(schema, most_properties(schema) if self._may_name_keys else None)

    def _attempt(self) -> tuple[Any, dict[str, Any]]:
        root = self._prepared(self._document, self._place)
        definitions: dict[str, Any] = {}
        while len(definitions) < len(self._definitions):  # preparing one may need others
            for each in list(self._definitions.values())[len(definitions) :]:
                definitions[each.name] = self._if_possible(self._prepared_now, each.node, each.place)
        definitions |= self._numbers
        if self._may_name_keys:
            definitions |= free_json_definitions()
        return root, definitions

    def _if_possible(self, prepare: Callable[[Any, Place], Any], node: Any, place: Place) -> Any:
        """The prepared schema, False where nothing can match."""
        try:
            return prepare(node, place)
        except UnsatisfiableError:
            return False

    def _prepared(self, node: Any, place: Place) -> Any:
        """One schema and all in it; False where nothing can match. What refers to others may refer to itself: later."""
        self._count(place)
        if not _refers(node):
            return self._prepared_now(node, place)
        kept = constraining(node, place)
        text = json.dumps(kept, sort_keys=True)
        if text in self._impossible:
            return False
        name = f"{self._prefix}d{len(self._definitions)}"
        definition = self._definitions.setdefault(text, _Definition(name, kept, place))
        return {"$ref": f"#/$defs/{definition.name}"}

    def _prepared_now(self, node: Any, place: Place) -> Any:
        together = self._together(node, place)
        return False if together.is_impossible else self._combined(together.parts, together.choices, place)

    def _count(self, place: Place) -> None:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise place.error(f"its alternatives make more than {MAX_NODES:,} schemas together, which is too large")

    def _together(self, node: Any, place: Place, references: tuple[str, ...] = ()) -> _Together:
        """A schema taken apart, with those that `$ref` and `allOf` add to it. references: on the way here."""
        if isinstance(node, bool):
            return _Together(is_impossible=not node)
        if not isinstance(node, Mapping):
            raise place.error(f"a schema is an object, true or false, not {node!r:.80}")
        kept = constraining(node, place)
        if len(references) > MAX_REFERENCES_IN_LINE:
            raise place.error(f"refers to others through more than {MAX_REFERENCES_IN_LINE}; write it out")
        branches = kept.pop("allOf", ())
        added: list[tuple[Any, tuple[str, ...]]] = [(branch, (*references, "allOf")) for branch in branches]
        if "$ref" in kept:
            reference = kept.pop("$ref")
            if reference in references:
                raise place.unsatisfiable(f"{reference!r:.80} refers to itself")
            added.insert(0, (resolved(self._document, reference, place), (*references, reference)))
        together = _Together()
        for branch, seen in added:
            self._count(place)
            inner = self._together(branch, place, seen)
            together.parts += inner.parts
            together.choices += inner.choices
            together.is_impossible |= inner.is_impossible
        together.choices += _choices(kept)
        together.parts += [kept] if kept else []
        return together

    def _combined(self, parts: list[Schema], choices: list[_Choice], place: Place) -> Any:
        """All parts together, and one branch of each choice with them."""
        if len(parts) > MAX_TOGETHER:
            raise place.error(f"more than {MAX_TOGETHER} schemas speak of one value; that is the most")
        if not choices:
            return self._plain(parts, place)
        choice, rest = choices[0], choices[1:]
        told_apart = self._told_apart(choice.branches, parts, rest, place) if choice.is_exclusive else None
        reasons: list[ConstraintError] = []
        branches: list[Any] = []
        for branch in told_apart or choice.branches:
            try:
                branches.append(self._branch(branch, parts, rest, place))
            except UnsatisfiableError as error:
                reasons.append(error)
            except UnenforceablePatternError as error:
                if not str(error).startswith(f"{place}: "):  # in a property: the branch means more than a text
                    raise
                reasons.insert(0, error)
        possible = [branch for branch in branches if branch is not False]
        if reasons and isinstance(reasons[0], UnenforceablePatternError) and possible == [{"type": "null"}]:
            raise reasons[0]
        if not possible and reasons:
            raise reasons[0]
        if len(possible) < 2:
            return possible[0] if possible else False
        return {"oneOf" if choice.is_exclusive and told_apart is None else "anyOf": possible}

    def _branch(self, branch: Any, parts: list[Schema], choices: list[_Choice], place: Place) -> Any:
        """One branch with all that holds beside it; False where it contradicts that."""
        if not parts and not choices:
            return self._prepared(branch, place)
        self._count(place)
        inner = self._together(branch, place)
        if inner.is_impossible:
            return False
        return self._combined([*parts, *inner.parts], [*inner.choices, *choices], place)

    def _told_apart(
        self, branches: Sequence[Any], parts: list[Schema], rest: list[_Choice], place: Place
    ) -> list[Any] | None:
        """Branches of a `oneOf`, of which what is written for one never fits another as given; None if they may."""
        if len(branches) > _MOST_EXCLUSIVE_BRANCHES:
            return None
        every = [self._shapes(parts, [_Choice([branch]), *rest], place) for branch in branches]
        shapes = [of_branch for of_branch in every if of_branch is not None]
        if len(shapes) < len(every) or sum(map(len, shapes)) > _MOST_SHAPES:
            return None
        apart: list[Any] = []
        for index, branch in enumerate(branches):
            others = [shape for of_branch in (*shapes[:index], *shapes[index + 1 :]) for shape in of_branch]
            forbidden = names_to_forbid(shapes[index], others)
            if forbidden is None:
                return None
            apart.append({"allOf": [branch, {"properties": dict.fromkeys(forbidden, False)}]} if forbidden else branch)
        return apart

    def _shapes(self, parts: list[Schema], choices: list[_Choice], place: Place) -> list[Shape] | None:
        """One for each way through all choices, also those inside others; None where there are too many."""
        shapes: list[Shape] = []
        waiting = [(parts, choices)]
        for _ in range(_MOST_WAYS):
            if not waiting:
                return shapes
            together, (choice, *rest) = waiting.pop()
            if len(together) > MAX_TOGETHER:
                break
            for inner in self._possible(choice.branches, place):
                self._count(place)
                way = ([*together, *inner.parts], [*inner.choices, *rest])
                if way[1]:
                    waiting.append(way)
                elif not (shape := self._shape(way[0], place)).required & shape.forbidden:
                    shapes.append(shape)
        return None

    def _possible(self, branches: Sequence[Any], place: Place) -> Iterator[_Together]:
        for branch in branches:
            with suppress(UnsatisfiableError):
                together = self._together(branch, place)
                if not together.is_impossible:
                    yield together

    def _shape(self, parts: list[Schema], place: Place) -> Shape:
        properties: dict[str, list[Schema]] = {}
        forbidden: set[str] = set()
        for name, schemas in listed_properties(parts).items():
            possible = list(self._possible(schemas, place.property(name)))
            properties[name] = [part for together in possible for part in together.parts]
            if len(possible) < len(schemas):
                forbidden.add(name)
        is_closed = added_properties(parts, self._rules) is False
        return Shape.of(parts, properties, forbidden, is_closed=is_closed)

    def _plain(self, parts: list[Schema], place: Place) -> Any:
        """Parts without alternatives as one schema."""
        node = merged(parts)
        if node is None:
            return False
        has_values = "enum" in node or "const" in node
        types = node.get("type") or ([] if has_values else inferred_types(node, parts))
        if has_values:
            return self._values(node, parts, place)
        if not types:
            self._may_name_keys = True
            return dict(FREE_JSON)
        types = possible_types(node, types)
        if not types:
            raise place.unsatisfiable("its bounds contradict each other")
        node["type"] = types[0] if len(types) == 1 else types
        if "array" in types:
            self._complete_array(node, place)
        if "object" in types:
            return self._with_properties(bounded_number(node, place), parts, place)
        return self._number(node, place) if {"integer", "number"} & set(types) else node

    def _number(self, node: Schema, place: Place) -> Schema:
        """A reference to a number with bounds: many of one kind would fill the lexer, one for each place."""
        bounded = bounded_number(node, place)
        name = f"n{hashlib.blake2s(json.dumps(bounded, sort_keys=True).encode(), digest_size=8).hexdigest()}"
        self._numbers[name] = bounded
        return {"$ref": f"#/$defs/{name}"}

    def _values(self, node: Schema, parts: list[Schema], place: Place) -> Schema:
        """A schema that lists its values: what else it says of objects and arrays would have to be checked here."""
        words = {*OBJECT_KEYWORDS, "items", "prefixItems"}
        values = [*node.get("enum", ()), *([node["const"]] if "const" in node else ())]
        if any(isinstance(value, dict | list) for value in values) and any(words & part.keys() for part in parts):
            raise place.error("enum or const beside what else it says cannot be enforced; leave only the values")
        return {key: value for key, value in node.items() if key not in words}

    def _complete_array(self, node: Schema, place: Place) -> None:
        """Say which items there may be, and how many of those that may be anything."""
        num_first, fewest = len(node.get("prefixItems", ())), node.get("minItems", 0)
        items = node.get("items", not num_first or fewest > num_first)
        node["items"] = self._if_possible(self._prepared, items, place.items())
        if num_first:
            node["prefixItems"] = [
                self._if_possible(self._prepared, item, place.items()) for item in node["prefixItems"]
            ]
        if node["items"] == FREE_JSON:
            node.setdefault("maxItems", max(MAX_FREE_ITEMS, fewest, num_first))

    def _with_properties(self, node: Schema, parts: list[Schema], place: Place) -> Any:
        """The schema with the words of all parts on objects."""
        names = Names.of(parts, self._rules, place)
        rules = [part["propertyNames"] for part in parts if "propertyNames" in part]
        if rules:
            together = next(self._possible([all_of(rules)], place), _Together(is_impossible=True))
            if together.choices:
                raise place.error('"propertyNames" with alternatives cannot be enforced; use enum, or one pattern')
            names = names.named(None if together.is_impossible else merged(together.parts), place)
        can_add = names.added is not False or bool(names.patterns)
        self._may_name_keys |= can_add
        properties = {name: self._property(name, names, place) for name in names.listed}
        for name in names.required:
            if properties.get(name, False) is False:
                raise place.unsatisfiable(f"requires {name!r:.80}, which may not be there")
        node |= {
            "properties": {name: value for name, value in properties.items() if value is not False or can_add},
            "required": [name for name in properties if name in names.required],
            "additionalProperties": names.added is not False
            and self._if_possible(self._prepared, names.added, place.property("*")),
        }
        if names.patterns:
            node["patternProperties"] = {
                pattern: names.is_free(pattern) or self._if_possible(self._prepared, schema, place.property(pattern))
                for pattern, schema in names.patterns.items()
            }
        fewest = max((part["minProperties"] for part in parts if "minProperties" in part), default=0)
        most = min((part["maxProperties"] for part in parts if "maxProperties" in part), default=math.inf)
        return counted(node, Counts(fewest, most), place)

    def _property(self, name: str, names: Names, place: Place) -> Any:
        """The schema of a property; False where it may not be there."""
        try:
            return self._prepared(all_of(names.listed[name]), place.property(name))
        except UnsatisfiableError:
            if name in names.required:
                raise
            return False


def _refers(node: Any) -> bool:
    """Whether a schema refers to another by itself or in `allOf`."""
    if not isinstance(node, Mapping):
        return False
    branches = node.get("allOf")
    return "$ref" in node or (isinstance(branches, list) and any(map(_refers, branches)))


def _choices(kept: Schema) -> Iterator[_Choice]:
    """The alternatives of one schema; their words are taken out of it."""
    tag = kept.pop("discriminator", None)
    if "anyOf" in kept:
        yield _Choice(kept.pop("anyOf"))
    if "oneOf" in kept:
        branches = kept.pop("oneOf")
        name = tag.get("propertyName") if isinstance(tag, Mapping) else None
        if isinstance(name, str):
            branches = [{"allOf": [branch, {"required": [name]}]} for branch in branches]
        yield _Choice(branches, is_exclusive=True)
    for key in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, demand in kept.pop(key, {}).items():
            then = {"required": demand} if isinstance(demand, list | tuple) else demand
            yield _Choice([{"allOf": [{"required": [name]}, then]}, {"properties": {name: False}}])
