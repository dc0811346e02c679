"""Schemas as generators and other languages write them: one row for each variant, with its origin as the reason."""

from typing import Any

import pytest

from model.constraint import ConstraintCompiler, ConstraintError, ConstraintSpec
from tests.support.walks import accepts, tiny_compiler

INTEGER = {"type": "integer", "minimum": 0, "maximum": 9}
LONG = 2**63


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return tiny_compiler()


def check(compiler: ConstraintCompiler, schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    """Every good text may be written, and no bad one."""
    assert [text for text in good if not accepts(compiler, schema, text)] == []
    assert [text for text in bad if accepts(compiler, schema, text)] == []


BOUNDS = [
    pytest.param({"type": "integer", "minimum": -LONG, "maximum": LONG - 1}, ["7", "-9"], id="a long of Java, C#"),
    pytest.param({"type": "integer", "minimum": -LONG}, ["-1000000000000000001", "5"], id="pydantic's ge alone"),
    pytest.param({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, ["1700000000000000001"], id="Rust's u64"),
    pytest.param({"type": "integer", "exclusiveMinimum": -LONG - 1}, ["-5"], id="an exclusive bound"),
    pytest.param({"type": "integer", "minimum": -1e308, "maximum": 1e308}, ["0"], id="an integer between floats"),
    pytest.param({"type": "number", "minimum": -1e20, "maximum": 1e20}, ["0.5", "-3"], id="round numbers"),
    pytest.param({"type": "number", "minimum": -1e308, "maximum": 1e308}, ["0.5"], id="nearly a double's range"),
    pytest.param(
        {"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38},
        ["0.25", "-7"],
        id="a float of C#",
    ),
    pytest.param({"type": ["number", "null"], "maximum": 10**400}, ["null", "1"], id="more than any float"),
    pytest.param({"type": ["object", "integer"], "minimum": -LONG}, ["{}", "-4"], id="beside an object"),
]


@pytest.mark.parametrize(("schema", "good"), BOUNDS)
def test_bounds_of_other_languages_types_narrow_to_what_can_be_enforced(
    compiler: ConstraintCompiler, schema: dict[str, Any], good: list[str]
) -> None:
    """They say that a number is a number; its digits stay bounded."""
    check(compiler, schema, good, ["1" * 25, "-" + "1" * 25])


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        pytest.param(
            {"type": "integer", "minimum": 2**53 + 1}, [str(2**53 + 2)], [str(2**53)], id="a least integer, no float"
        ),
        pytest.param(
            {"type": "integer", "minimum": 0, "maximum": 2**53 + 3}, [str(2**53)], [str(2**53 + 4)], id="a greatest one"
        ),
        pytest.param(
            {"type": "number", "minimum": -(2**53) - 3}, [str(-(2**53))], [str(-(2**53) - 4)], id="a least number"
        ),
        pytest.param(
            {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**60 + 1}, ["1"], [str(2**60 + 1)], id="exclusive"
        ),
    ],
)
def test_bounds_that_no_float_holds_are_not_overstepped(
    compiler: ConstraintCompiler, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    """The compiler reads them as floats: they round inwards."""
    check(compiler, schema, good, bad)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 10**20},
        {"type": "number", "minimum": 1e20, "maximum": 2e20},
        {"type": "integer", "maximum": -(10**19)},
        {"type": "number", "exclusiveMinimum": 1e300},
        {"type": ["object", "number"], "exclusiveMaximum": -1e300},
    ],
)
def test_numbers_beyond_64_bits_are_refused_by_name(compiler: ConstraintCompiler, schema: dict[str, Any]) -> None:
    """Not written as something else."""
    document = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    with pytest.raises(ConstraintError, match=r"property 'a': .*2\^63"):
        compiler.compile(ConstraintSpec.json_schema(document))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        pytest.param(
            {"type": "integer", "minimum": 1_700_000_000_000_000_000},
            ["1700000000000000000", "1700000000000000001", "1700123456789012345"],
            ["1699999999999999999", "5"],
            id="nanoseconds since 1970",
        ),
        pytest.param(
            {"type": "integer", "exclusiveMinimum": 10**17},
            ["100000000000000123"],
            ["100000000000000000"],
            id="a snowflake",
        ),
        pytest.param(
            {"type": "integer", "maximum": -(10**17)}, ["-100000000000000123"], ["-99999999999999999"], id="the mirror"
        ),
        pytest.param(
            {"type": "number", "exclusiveMinimum": 1e17},
            ["100000000000000123"],
            ["100000000000000000"],
            id="no integer",
        ),
        pytest.param({"type": "number", "minimum": 1e16}, ["10000000000000123"], ["5"], id="a number"),
        pytest.param({"type": "integer", "minimum": 10**15 - 1}, ["1000000000000123"], ["7"], id="just below 10**15"),
        pytest.param({"type": "integer", "minimum": LONG - 10**6}, [str(LONG - 10**5)], ["7"], id="just below 2**63"),
    ],
)
def test_a_large_bound_leaves_room_beyond_it(
    compiler: ConstraintCompiler, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    """And not one value only."""
    check(compiler, schema, good, bad)


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
