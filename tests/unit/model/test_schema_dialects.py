"""Schemas as generators and other languages write them: one row for each variant, with its origin as the reason."""

from typing import Any

import pytest

from model.constraint import ConstraintCompiler, ConstraintError, ConstraintSpec
from tests.support.walks import check, tiny_compiler

INTEGER = {"type": "integer", "minimum": 0, "maximum": 9}


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return tiny_compiler()


def tagged(name: str, value: str, **more: Any) -> dict[str, Any]:
    """An object with a tag, as pydantic writes a model with a Literal."""
    return {"type": "object", "properties": {name: {"const": value}, **more}, "required": [name, *more]}


def union(name: str, *branches: Any) -> dict[str, Any]:
    """A discriminated union."""
    return {"oneOf": list(branches), "discriminator": {"propertyName": name}}


A = tagged("k", "a")
B1, B2 = tagged("k", "b", v={"const": 1}), tagged("k", "b", v={"const": 2})
X = {"type": "object", "properties": {"x": INTEGER}, "required": ["x"]}
TWO = {"type": "object", "properties": {"a": INTEGER, "b": INTEGER, "c": INTEGER}}
EXCLUSIVE = [
    pytest.param(
        union("k", A, union("v", B1, B2)),
        ['{"k": "a"}', '{"k": "b", "v": 2}'],
        ['{"k": "b"}', '{"k": "b", "v": 3}', '{"k": "a", "v": 1}'],
        id="a union in a union: pydantic",
    ),
    pytest.param(
        {"$defs": {"B": union("v", B1, B2), "A": A}, **union("k", {"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"})},
        ['{"k": "a"}', '{"k": "b", "v": 1}'],
        ['{"k": "c"}'],
        id="the same by reference",
    ),
    pytest.param(
        {"oneOf": [A, {"anyOf": [B1, B2]}]}, ['{"k": "a"}', '{"k": "b", "v": 1}'], ['{"k": "b"}'], id="anyOf in oneOf"
    ),
    pytest.param(
        {"type": "array", "maxItems": 1, "items": {"oneOf": [{"type": "null"}, union("k", A, union("v", B1, B2))]}},
        ["[null]", '[{"k": "b", "v": 2}]'],
        ["[1]"],
        id="an optional union of unions in a list",
    ),
    pytest.param(
        union(
            "k",
            union("v", B1, B2),
            {**tagged("k", "c"), "oneOf": [X, {"properties": {"y": INTEGER}, "required": ["y"]}]},
        ),
        ['{"k": "b", "v": 1}', '{"k": "c", "x": 1}', '{"k": "c", "y": 1}'],
        ['{"k": "c", "x": 1, "y": 1}'],
        id="three levels",
    ),
    pytest.param(
        {**TWO, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        ['{"a": 1}', '{"b": 1, "c": 2}'],
        ["{}", '{"a": 1, "b": 1}'],
        id="one of two must be there: OpenAPI",
    ),
    pytest.param(
        {**TWO, "oneOf": [{"required": ["a"]}, {"required": ["b"]}, {"required": ["c"]}]},
        ['{"a": 1}', '{"b": 1}', '{"c": 1}'],
        ["{}", '{"a": 1, "c": 1}', '{"b": 1, "c": 1}'],
        id="one of three",
    ),
    pytest.param(
        {**TWO, "additionalProperties": True, "oneOf": [{"required": ["a", "c"]}, {"required": ["b", "c"]}]},
        ['{"a": 1, "c": 1, "z": 1}', '{"b": 1, "c": 1}'],
        ['{"c": 1}', '{"a": 1, "b": 1, "c": 1}'],
        id="of an open object",
    ),
    pytest.param(
        {"oneOf": [{**TWO, "required": ["a"]}, {**TWO, "required": ["b"]}]},
        ['{"a": 1}', '{"b": 1}'],
        ['{"a": 1, "b": 1}'],
        id="each branch with all properties",
    ),
    pytest.param(
        {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        ['{"a": 1}', '{"b": 1}'],
        ['{"a": 1, "b": 1}', "{}"],
        id="properties that are not listed",
    ),
    pytest.param(
        {
            "oneOf": [
                {"properties": {"a": INTEGER}, "required": ["a"]},
                {"properties": {"b": INTEGER}, "required": ["b"]},
            ],
            "dependentSchemas": {"a": {"properties": {"b": INTEGER}}, "b": {"properties": {"a": INTEGER}}},
        },
        ['{"a": 1}', '{"b": 1}'],
        ['{"a": 1, "b": 1}'],
        id="what stands beside lists the other's properties",
    ),
]


@pytest.mark.parametrize(("schema", "good", "bad"), EXCLUSIVE)
def test_branches_of_one_of_are_told_apart(
    compiler: ConstraintCompiler, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    """By tags at any depth, or by forbidding what another branch requires."""
    check(compiler, schema, good, bad)


@pytest.mark.parametrize(
    "schema",
    [
        {**TWO, "oneOf": [{"required": ["a"]}, {"required": ["a", "b"]}]},
        {"oneOf": [{"$ref": "#"}, {"oneOf": [{"$ref": "#"}, {"$ref": "#"}]}]},
        {"type": "object", "oneOf": [{"oneOf": [{"$ref": "#"}, X]}, X]},
    ],
    ids=["one within the other", "of itself", "of itself and another"],
)
def test_branches_that_nothing_tells_apart_are_refused(compiler: ConstraintCompiler, schema: dict[str, Any]) -> None:
    """Soon, and in one line."""
    with pytest.raises(ConstraintError) as error:
        compiler.compile(ConstraintSpec.json_schema(schema))
    assert "\n" not in str(error.value)


TEXT = {"type": "string", "maxLength": 3}
IMPOSSIBLE = [
    pytest.param({"type": "integer", "minimum": 5, "maximum": 1}, id="crossed bounds"),
    pytest.param({"type": "integer", "minimum": 0.2, "maximum": 0.8}, id="no integer between the bounds"),
    pytest.param({"type": "number", "exclusiveMinimum": 1, "maximum": 1}, id="an exclusive bound"),
    pytest.param({"minimum": 5, "exclusiveMaximum": 5}, id="no type"),
    pytest.param({"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 1}]}, id="crossed by allOf"),
    pytest.param({"type": "string", "minLength": 3, "maxLength": 2}, id="crossed lengths"),
    pytest.param({"type": "array", "items": INTEGER, "minItems": 3, "maxItems": 2}, id="crossed counts"),
    pytest.param({"type": "object", "minProperties": 3, "maxProperties": 2}, id="crossed counts of properties"),
    pytest.param({"enum": []}, id="no value: a generated enum of nothing"),
    pytest.param({"anyOf": []}, id="no alternative"),
    pytest.param({"type": "string", "oneOf": []}, id="no exclusive alternative"),
    pytest.param({"not": {}}, id="zod's never and undefined"),
    pytest.param({"not": True, "description": "never"}, id="the same with a boolean"),
    pytest.param({"not": {"title": "Any"}}, id="not anything, with a title"),
    pytest.param({"allOf": [TEXT, {"not": {}}]}, id="never in allOf"),
    pytest.param({"type": "array", "items": {"not": {}}, "minItems": 1}, id="a list that needs an impossible item"),
]


@pytest.mark.parametrize("never", IMPOSSIBLE)
def test_what_is_impossible_is_left_out_where_something_else_may_be_written(
    compiler: ConstraintCompiler, never: dict[str, Any]
) -> None:
    """In every place; alone, it is refused."""
    check(compiler, {"anyOf": [never, TEXT]}, ['"ab"'], ["3", "[]"])
    check(compiler, {"oneOf": [TEXT, never]}, ['"ab"'], ["3"])
    listed = {"type": "object", "properties": {"a": never, "b": INTEGER}}
    check(compiler, listed, ['{"b": 1}', "{}"], ['{"a": 1}'])
    check(compiler, {**listed, "additionalProperties": never}, ['{"b": 1}'], ['{"a": 1}', '{"z": 1}'])
    check(compiler, {"type": "object", "patternProperties": {"^x": never}}, ["{}"], ['{"x": 1}'])
    check(compiler, {"type": "array", "items": never}, ["[]"], ["[1]"])
    check(compiler, {"type": "array", "prefixItems": [INTEGER, never]}, ["[]", "[1]"], ["[1, 1]"])
    referring = {"$defs": {"n": never}, "anyOf": [{"$ref": "#/$defs/n"}, TEXT]}
    check(compiler, referring, ['"ab"'], ["3"])
    with pytest.raises(ConstraintError, match="nothing can match it"):
        compiler.compile(ConstraintSpec.json_schema({**listed, "required": ["a"]}))
    with pytest.raises(ConstraintError, match="nothing can match it"):
        compiler.compile(ConstraintSpec.json_schema(never))


@pytest.mark.parametrize(
    "names", [{"not": {}}, {"enum": []}, {"minLength": 3, "maxLength": 2}, {"type": "integer"}, False]
)
def test_where_no_name_is_possible_an_object_is_empty(compiler: ConstraintCompiler, names: Any) -> None:
    """It may not have any."""
    check(compiler, {"type": "object", "propertyNames": names, "additionalProperties": INTEGER}, ["{}"], ['{"x": 1}'])


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer", "minimum": 0, "maximum": 9, "not": False}, ["3"], ["x"]),
        ({"type": "boolean", "not": {"not": {}}}, ["true"], ["3"]),
        ({"type": ["integer", "string"], "minimum": 5, "maximum": 1, "maxLength": 3}, ['"ab"'], ["3"]),
        ({"type": ["null", "string"], "minLength": 5, "maxLength": 1}, ["null"], ['"ab"']),
    ],
    ids=["not false", "not never", "crossed bounds of one type", "crossed lengths of one type"],
)
def test_a_contradiction_takes_only_what_it_speaks_of(
    compiler: ConstraintCompiler, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    """And `not` of what is impossible says nothing."""
    check(compiler, schema, good, bad)


LOOKING = {"type": "string", "pattern": "^(?!x)[a-z]+$"}
ZOD_EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
LEFT_OUT = [
    pytest.param({"anyOf": [{"const": "ok"}, LOOKING]}, ['"ok"'], ['"ab"'], id="beside a value"),
    pytest.param({"anyOf": [LOOKING, INTEGER]}, ["3"], ['"ab"'], id="before a number"),
    pytest.param({"anyOf": [LOOKING, INTEGER, {"type": "null"}]}, ["3", "null"], ['"ab"'], id="and null"),
    pytest.param(
        {"anyOf": [{"pattern": r"(a)\1"}, {"maxLength": 2}], "type": "string"}, ['"ab"'], ['"abc"'], id="back"
    ),
    pytest.param({"anyOf": [{"type": "string", "pattern": r"\bA"}, INTEGER]}, ["3"], ['"A"'], id="a word boundary"),
    pytest.param(
        {"type": "string", "format": "email", "pattern": ZOD_EMAIL},
        ['"a.b@c.org"', '"o\'neil+x@d-e.co.uk"'],
        ['".a@c.org"', '"a..b@c.org"', '"a.@c.org"', '"a@c"'],
        id="zod 4's email, written without look-ahead",
    ),
]


@pytest.mark.parametrize(("schema", "good", "bad"), LEFT_OUT)
def test_a_branch_whose_pattern_looks_around_is_left_out_beside_others(
    compiler: ConstraintCompiler, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    """The others are enough to write something that fits."""
    check(compiler, schema, good, bad)


@pytest.mark.parametrize(
    "schema",
    [
        LOOKING,
        {"anyOf": [LOOKING, LOOKING]},
        {"anyOf": [LOOKING, {"type": "null"}]},
        {"anyOf": [LOOKING, {"not": {}}]},
        {"oneOf": [LOOKING, {"type": "string", "const": "ab"}]},
        {"anyOf": [{"type": "object", "properties": {"p": LOOKING}}, INTEGER]},
        {"type": "string", "format": "email", "pattern": r"^(?!\.).*@example\.com$"},
    ],
    ids=["alone", "nothing else", "only null", "only never", "exclusive", "a property of a branch", "with a format"],
)
def test_where_nothing_else_is_meant_a_pattern_that_looks_around_is_refused(
    compiler: ConstraintCompiler, schema: dict[str, Any]
) -> None:
    """By name: an answer that is always null would surprise."""
    document = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    with pytest.raises(ConstraintError, match=r"property 'a.*': .*(look-around|look-ahead)"):
        compiler.compile(ConstraintSpec.json_schema(document))


ID = "https://example.org/tree.json"
SPELLINGS = [
    pytest.param({"type": "object", "properties": []}, ["{}"], ['{"a": 1}'], id="PHP: no properties"),
    pytest.param(
        {"properties": {"a": INTEGER}, "patternProperties": [], "dependentRequired": []},
        ['{"a": 1}', "{}"],
        ['{"b": 1}'],
        id="PHP: other empty objects",
    ),
    pytest.param({"properties": {"a": []}}, ['{"a": 1}', '{"a": "x"}'], ['{"b": 1}'], id="PHP: a property of any form"),
    pytest.param({"properties": {"a": None}}, ['{"a": 1}', "{}"], ['{"b": 1}'], id="null for a property of any form"),
    pytest.param(
        {"$id": ID, "properties": {"next": {"$ref": ID}, "v": INTEGER}},
        ['{"next": {"v": 1}}'],
        ['{"next": 1}'],
        id="a reference to the document's own address",
    ),
    pytest.param(
        {"$id": ID + "#", "properties": {"v": {"$ref": ID + "#/$defs/v"}}, "$defs": {"v": INTEGER}},
        ['{"v": 1}'],
        ['{"v": "x"}'],
        id="and into it",
    ),
    pytest.param(
        {"id": ID, "properties": {"v": {"$ref": "tree.json#/definitions/v"}}, "definitions": {"v": INTEGER}},
        ['{"v": 1}'],
        ['{"v": "x"}'],
        id="relative, in draft 4",
    ),
    pytest.param(
        {"type": "array", "items": INTEGER, "uniqueItems": True, "maxItems": 1},
        ["[]", "[1]"],
        ["[1, 1]"],
        id="a set of one",
    ),
]


@pytest.mark.parametrize(("schema", "good", "bad"), SPELLINGS)
def test_other_spellings_of_the_same_are_read(
    compiler: ConstraintCompiler, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    """As their authors mean them."""
    check(compiler, schema, good, bad)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$id": ID, "$ref": "https://example.org/other.json"}, "refers to"),
        ({"$id": ID, "$ref": "other.json#/$defs/v"}, "refers to"),
        ({"$ref": ID}, "refers to"),
        ({"type": "array", "items": INTEGER, "uniqueItems": True, "maxItems": 2}, "uniqueItems"),
        ({"type": "object", "properties": [INTEGER]}, "properties must be an object"),
    ],
)
def test_what_only_resembles_them_is_refused(
    compiler: ConstraintCompiler, schema: dict[str, Any], message: str
) -> None:
    """By name."""
    with pytest.raises(ConstraintError, match=message):
        compiler.compile(ConstraintSpec.json_schema(schema))


UUID = "0b6a9c3e-1f2d-4c5b-8a7e-001122334455"
NAMED = [
    pytest.param({"format": "uuid"}, [f'{{"{UUID}": 1}}', "{}"], ['{"x": 1}'], id="pydantic: dict[UUID, int]"),
    pytest.param(
        {"format": "date"}, ['{"2024-02-28": 1}'], ['{"2024-2-8": 1}', '{"2024-13-01": 1}'], id="dict[date, int]"
    ),
    pytest.param(
        {"type": "string", "format": "date-time"},
        ['{"2024-02-28T10:00:00Z": 1}', '{"2024-02-28T23:59:59.123+02:00": 1}'],
        ['{"2024-02-28": 1}', '{"2024-02-28T24:00:00Z": 1}'],
        id="dict[datetime, int]",
    ),
    pytest.param({"format": "time"}, ['{"10:00:00Z": 1}'], ['{"10": 1}'], id="dict[time, int]"),
    pytest.param({"format": "uuid", "maxLength": 36}, ["{}"], ['{"x": 1}'], id="a format of one length with it"),
    pytest.param(
        {"pattern": "^[a-z]+$", "maxLength": 3}, ['{"abc": 1}'], ['{"abcd": 1}', '{"": 1}', '{"A": 1}'], id="constr"
    ),
    pytest.param(
        {"pattern": r"^[A-Za-z_]\w*$", "minLength": 2, "maxLength": 4},
        ['{"a1": 1}', '{"_bcd": 1}'],
        ['{"a": 1}', '{"1a": 1}', '{"abcde": 1}'],
        id="identifiers of a length",
    ),
    pytest.param({"pattern": r"^x-[a-z]*$", "minLength": 3}, ['{"x-a": 1}'], ['{"x-": 1}'], id="a prefix and a length"),
    pytest.param({"pattern": r"^\d+$", "maxLength": 0}, ["{}"], ['{"1": 1}', '{"": 1}'], id="no length that fits"),
]


@pytest.mark.parametrize(("names", "good", "bad"), NAMED)
def test_names_have_a_format_or_a_pattern_with_a_length(
    compiler: ConstraintCompiler, names: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    """As Python's dictionaries of other keys than texts have them."""
    check(compiler, {"type": "object", "propertyNames": names, "additionalProperties": INTEGER}, good, bad)


@pytest.mark.parametrize(
    "names",
    [
        {"format": "email"},
        {"format": "uuid", "pattern": "^a"},
        {"format": "uuid", "maxLength": 40, "minLength": 37},
        {"pattern": "^(ab)+$", "maxLength": 3},
        {"pattern": "[a-z]+", "maxLength": 3},
    ],
)
def test_names_that_no_pattern_says_are_refused(compiler: ConstraintCompiler, names: dict[str, Any]) -> None:
    """By the word."""
    with pytest.raises(ConstraintError, match="propertyNames"):
        compiler.compile(ConstraintSpec.json_schema({"propertyNames": names, "additionalProperties": INTEGER}))
