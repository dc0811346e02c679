"""Bounds of numbers as generators and other languages write them."""

from typing import Any

import pytest

from model.constraint import ConstraintCompiler, ConstraintError, ConstraintSpec
from tests.support.walks import check, tiny_compiler

LONG = 2**63


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return tiny_compiler()


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
