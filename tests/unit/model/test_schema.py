"""Schemas as people write them: what is written for one fits it, and what cannot be enforced is named."""

import json
import re
import time
from typing import Any

import jsonschema
import numpy as np
import pytest

from model.constraint import Constraint, ConstraintCompiler, ConstraintError, ConstraintSpec, SchemaRules
from model.constraint.free_json import MAX_ADDED_PROPERTIES
from tests.support.walks import END, TOKENIZER, VOCAB_SIZE, accepts, tiny_compiler
from tests.support.wild_schemas import WildSchemas

INTEGER = {"type": "integer", "minimum": 0, "maximum": 9}


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return tiny_compiler()


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are all different."""
    assert len(dict(pairs)) == len(pairs), f"repeated: {[name for name, _ in pairs]}"
    return dict(pairs)


def walk(constraint: Constraint, seed: int, max_tokens: int = 3_000, taste: float = 0.0) -> str | None:
    """A random answer, None if it has no end. taste: how much it favours the same few characters."""
    random = np.random.default_rng(seed)
    favour = taste * random.standard_normal(VOCAB_SIZE)
    ids: list[int] = []
    for _ in range(max_tokens):
        if constraint.is_finished:
            return TOKENIZER.decode([token_id for token_id in ids if token_id != END])
        logits = (random.standard_normal(VOCAB_SIZE) + favour).astype(np.float32)
        logits[END] += 3.0
        logits[TOKENIZER.encode('"}],')] += 2.0
        constraint.mask(logits)
        ids.append(int(logits.argmax()))
        constraint.advance(ids[-1])
    return None


@pytest.mark.parametrize("block", range(12))
def test_what_is_written_for_a_wild_schema_fits_it(compiler: ConstraintCompiler, block: int) -> None:
    """As jsonschema, which knows nothing of this code, judges. Those that contradict themselves are refused."""
    num_checked = 0
    for seed in range(block * 20, block * 20 + 20):
        schema = WildSchemas(seed).document()
        rules = SchemaRules(opens_objects=seed % 7 == 0, is_strict=seed % 5 == 0)
        try:
            spec = ConstraintSpec.json_schema(schema, rules)
            constraint = compiler.compile(spec)
        except ConstraintError:
            continue
        text = walk(constraint, seed, taste=2.0 * (seed % 2))
        if text is not None:
            jsonschema.validate(json.loads(text), schema)
            num_checked += 1
    assert num_checked >= 5


COMPOSED = [
    pytest.param(
        {"allOf": [{"properties": {"a": INTEGER}}, {"properties": {"b": INTEGER}}]},
        ['{"a": 1, "b": 2}', '{"b": 2}', "{}"],
        ['{"c": 1}', '{"a": "x"}'],
        id="allOf: the properties of all branches, and no others",
    ),
    pytest.param(
        {"$ref": "#/$defs/base", "properties": {"b": INTEGER}, "$defs": {"base": {"properties": {"a": INTEGER}}}},
        ['{"a": 2, "b": 1}', '{"b": 2}'],
        ['{"c": 1}'],
        id="a reference with words beside it",
    ),
    pytest.param(
        {
            "properties": {"a": INTEGER},
            "anyOf": [{"properties": {"b": INTEGER}, "required": ["b"]}, {"required": ["a"]}],
        },
        ['{"a": 1, "b": 2}', '{"b": 2}', '{"a": 1}'],
        ["{}", '{"c": 1}'],
        id="anyOf beside properties: each branch with them",
    ),
    pytest.param(
        {
            "type": "object",
            "allOf": [{"properties": {"a": INTEGER}, "additionalProperties": False}],
            "properties": {"b": INTEGER},
        },
        ['{"a": 1}', "{}"],
        ['{"b": 1}', '{"a": 1, "b": 1}'],
        id="a branch that closes itself forbids what the others list",
    ),
    pytest.param(
        {"allOf": [{"properties": {"a": INTEGER}}, {"additionalProperties": {"type": "boolean"}}]},
        ["{}", '{"z": true}'],
        ['{"a": 1}', '{"z": 1}'],
        id="additionalProperties speaks of all that its own branch does not list",
    ),
    pytest.param(
        {"allOf": [{"properties": {"a": INTEGER}}], "properties": {"b": INTEGER}, "unevaluatedProperties": False},
        ['{"a": 2, "b": 1}'],
        ['{"c": 1}'],
        id="unevaluatedProperties closes over all branches",
    ),
    pytest.param(
        {
            "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
            "discriminator": {"propertyName": "kind"},
            "$defs": {
                "cat": {"type": "object", "properties": {"kind": {"const": "cat", "default": "cat"}, "lives": INTEGER}},
                "dog": {"type": "object", "properties": {"kind": {"const": "dog"}, "age": INTEGER}},
            },
        },
        ['{"kind": "cat", "lives": 9}', '{"kind": "dog"}'],
        ['{"kind": "cow"}', '{"lives": 9}', '{"kind": "cat", "age": 1}'],
        id="oneOf with a tag, as pydantic writes a union",
    ),
    pytest.param(
        {"properties": {"a": INTEGER, "b": INTEGER}, "dependentRequired": {"a": ["b"]}},
        ['{"a": 1, "b": 2}', '{"b": 2}', "{}"],
        ['{"a": 1}'],
        id="one property needs another",
    ),
    pytest.param(
        {"properties": {"next": {"$ref": "#"}, "v": INTEGER}},
        ['{"next": {"next": {}, "v": 1}}', "{}"],
        ['{"next": 1}', '{"x": 1}'],
        id="a schema of itself",
    ),
    pytest.param(
        {"type": "array", "items": [INTEGER, {"type": "boolean"}]},
        ["[]", "[1]", "[1, true]"],
        ["[true]", "[1, true, 1]"],
        id="a tuple as draft 7 has it",
    ),
    pytest.param(
        {"type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 3},
        ["2", "3"],
        ["1", "4"],
        id="an exclusive bound as draft 4 has it",
    ),
    pytest.param(
        {"type": "object", "properties": None, "required": None, "additionalProperties": None, "description": None},
        ["{}", '{"a": 1}'],
        ["1"],
        id="nulls, as some generators leave them",
    ),
    pytest.param(
        {"properties": {"a": INTEGER}, "required": ["a", "b"]},
        ['{"a": 1, "b": [2]}'],
        ['{"a": 1}', '{"a": 1, "b": 2, "c": 3}'],
        id="a required property that is not listed may be anything",
    ),
]


@pytest.mark.parametrize(("schema", "good", "bad"), COMPOSED)
def test_schemas_that_work_together_are_closed_over_all_of_them(
    compiler: ConstraintCompiler, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    """Closing one branch alone would leave nothing that fits."""
    assert [text for text in good if not accepts(compiler, schema, text)] == []
    assert [text for text in bad if accepts(compiler, schema, text)] == []


LISTED = {"type": "object", "properties": {"a": INTEGER, "b": INTEGER, "c": INTEGER}}
OPEN = {"type": "object", "additionalProperties": INTEGER}
COUNTED = {
    "open": ({**OPEN, "minProperties": 3}, ['{"x": 1, "y": 1, "z": 1}'], ['{"x": 1, "x": 1, "x": 1}']),
    "exactly two": (
        {**OPEN, "minProperties": 2, "maxProperties": 2},
        ['{"x": 1, "y": 1}'],
        ['{"x": 1, "y": 1, "z": 1}', '{"x": 1}'],
    ),
    "at least one of a list": ({**LISTED, "minProperties": 1}, ['{"b": 1}', '{"a": 1, "c": 2}'], ["{}"]),
    "at least two of a list": ({**LISTED, "minProperties": 2}, ['{"b": 1, "c": 1}'], ["{}", '{"b": 1}']),
    "at most one of a list": ({**LISTED, "maxProperties": 1}, ["{}", '{"c": 1}'], ['{"a": 1, "c": 1}']),
    "more than are listed": (
        {**LISTED, "minProperties": 4},
        ['{"a": 1, "b": 1, "c": 1, "d": 1}'],
        ['{"a": 1, "b": 1, "c": 1}'],
    ),
    "one beside the required": (
        {**LISTED, "required": ["a"], "minProperties": 2},
        ['{"a": 1, "c": 1}'],
        ['{"a": 1}'],
    ),
    "a list and others": ({**LISTED, **OPEN, "minProperties": 1}, ['{"b": 1, "z": 1}'], ["{}"]),
    "required": ({**OPEN, "required": ["a", "b"]}, ['{"a": 1, "b": 1, "z": 1}'], ['{"a": 1, "z": 1, "z": 1}']),
}


@pytest.mark.parametrize(("schema", "good", "bad"), COUNTED.values(), ids=COUNTED.keys())
def test_a_name_written_twice_counts_once(
    compiler: ConstraintCompiler, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    """And counts hold also where properties are optional."""
    assert [text for text in good if not accepts(compiler, schema, text)] == []
    assert [text for text in bad if accepts(compiler, schema, text)] == []


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        pytest.param('{"k": 1, "k2": 1}', True, id="another name with the same beginning"),
        pytest.param('{"k": 1, "k": 1}', False, id="the same name"),
        pytest.param('{"k": {"k": 1}, "j": {"k": 1}}', True, id="the same name in other objects"),
        pytest.param('{"k": [{"q": 1}, {"q": 1, "q": 2}]}', False, id="twice in an object of a list"),
        pytest.param('{"k": "k", "j": "k\\": 1, \\"k"}', True, id="names in texts are none"),
        pytest.param('{"\\u0001": 1}', False, id="an escape that could spell a known name"),
        pytest.param('{"a\\nb": 1, "a\\nb": 1}', False, id="names with escapes"),
        pytest.param('{"": 1, "é": 2, "": 3}', False, id="the empty name"),
    ],
)
def test_names_of_free_json_are_distinct(compiler: ConstraintCompiler, text: str, is_allowed: bool) -> None:
    """At every depth, as JSON's readers would take them for one."""
    assert accepts(compiler, {"type": "object"}, text) == is_allowed


def test_a_property_that_is_listed_has_no_second_spelling(compiler: ConstraintCompiler) -> None:
    r"""`"\u0061"` reads as "a", and would get round what is said of a."""
    schema = {"type": "object", "properties": {"a": INTEGER}, "additionalProperties": {"type": "string"}}
    assert accepts(compiler, schema, '{"b": "x"}')
    assert not accepts(compiler, schema, '{"\\u0061": "x"}')


def repeats(text: str) -> str:
    """What a model that has fallen into a loop would write next: the same property again."""
    if text.endswith(('"x', "xx")):
        return '"'
    if text.endswith(("{", ", ")):
        return '"'
    if text.endswith(('{"', ', "')):
        return "x"
    return {'"': ":", ":": " ", " ": "1", "1": ",", ",": " ", "}": ","}.get(text[-1:], "{")


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"type": "object"}, id="any object"),
        pytest.param(OPEN, id="a map of numbers"),
        pytest.param({**LISTED, "additionalProperties": True}, id="a list and any others"),
        pytest.param({**LISTED, **OPEN, "required": ["a", "b", "c"]}, id="required ones and others"),
        pytest.param({"type": "object", "patternProperties": {"^x": INTEGER}}, id="names by pattern"),
        pytest.param({"type": "object", "patternProperties": {"^(x|y)$": INTEGER}}, id="a pattern of two"),
        pytest.param({"properties": {"m": {"type": "object"}}, "required": ["m"]}, id="inside another object"),
        pytest.param({"type": "array", "items": OPEN, "minItems": 2, "maxItems": 2}, id="in a list"),
    ],
)
def test_a_model_in_a_loop_is_led_out_of_an_open_object(compiler: ConstraintCompiler, schema: dict[str, Any]) -> None:
    """It cannot write one property for ever: each once, and a bounded number beside those that are listed."""
    constraint, text = compiler.compile(ConstraintSpec.json_schema(schema)), ""
    while not constraint.is_finished and len(text) < 4_000:
        logits = np.zeros(VOCAB_SIZE, np.float32)
        logits[TOKENIZER.encode('x1"')] = 0.5
        logits[TOKENIZER.encode(repeats(text))] = 1.0
        constraint.mask(logits)
        token_id = int(logits.argmax())
        constraint.advance(token_id)
        text += TOKENIZER.token_text(token_id) if token_id != END else ""
    value = json.loads(text)
    jsonschema.validate(value, schema)
    assert text.count(":") <= 2 * (MAX_ADDED_PROPERTIES + 4)


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ({"not": {"type": "string"}}, "anyOf"),
        ({"if": {}, "then": {}, "else": False}, "anyOf"),
        ({"type": "array", "uniqueItems": True}, "leave it out"),
        ({"type": "array", "contains": {"const": 1}}, "prefixItems"),
        ({"$dynamicRef": "#meta"}, r"\$ref"),
        ({"type": "object", "propertyNames": {"not": {"const": "x"}}}, "enum, pattern"),
        ({"type": "string", "pattern": r"^(?<!a)b"}, "write it without"),
        ({"type": "string", "pattern": r"\bword\b"}, "write it without"),
        ({"type": "string", "pattern": r"(a)\1"}, "write it without"),
        ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "use anyOf"),
    ],
)
def test_what_cannot_be_enforced_is_named_with_its_place_and_advice(
    compiler: ConstraintCompiler, word: dict[str, Any], advice: str
) -> None:
    """Wherever it stands."""
    schema = {
        "properties": {"a": {"type": "array", "items": {"properties": {"b": word}, "required": ["b"]}, "minItems": 1}}
    }
    schema["required"] = ["a"]  # type: ignore[assignment]
    with pytest.raises(ConstraintError, match=rf"property 'a\[\].b': .*{advice}"):
        compiler.compile(ConstraintSpec.json_schema(schema))


DIGITS = "٣𝟑३"
ASCII = [
    (r"^\d{1}$", "3", DIGITS),
    (r"^[\d_]$", "3_", DIGITS),
    (r"^[^\D]$", "3", DIGITS + "a"),
    (r"^\w$", "3a_", DIGITS + "éя漢"),
    (r"^[\w-]$", "a-", "é"),
    (r"^\W$", "é -", "a_3"),
    (r"^\s$", " ", "\u00a0\u2003"),
    (r"^\S$", "aé\u00a0", " "),
    (r"^[^\s]$", "a\u2003", " "),
    (r"(?u)^\d$", "3" + DIGITS, "a"),
    (r"^(?u:\d)$", "3" + DIGITS, "a"),
    (r"^[[]$", "[", "a"),
]


@pytest.mark.parametrize(("pattern", "good", "bad"), ASCII)
def test_classes_by_letter_are_ascii_in_every_place(
    compiler: ConstraintCompiler, pattern: str, good: str, bad: str
) -> None:
    r"""`pattern`, names, guided_regex and grammars; `(?u)` asks for all of Unicode."""
    schema = {"type": "string", "pattern": pattern}
    names = {"type": "object", "patternProperties": {pattern: {"const": 1}}, "additionalProperties": False}
    rust = pattern.replace("[[]", r"[\[]")
    regex = ConstraintSpec.regex(rust)
    grammar = ConstraintSpec.grammar(f'start: "<" R\nR: /{re.sub("[$^](?!.)|^[$^]", "", rust).replace("^[", "[")}/')
    for text in good + bad:
        is_good = text in good
        quoted = json.dumps(text, ensure_ascii=False)
        assert accepts(compiler, schema, quoted) == is_good
        assert accepts(compiler, names, f"{{{quoted}: 1}}") == is_good
        assert takes(compiler.compile(regex), text) == is_good
        if "^" not in pattern[1:] and not pattern.startswith("(?u)"):
            assert takes(compiler.compile(grammar), "<" + text) == is_good


def takes(constraint: Constraint, text: str) -> bool:
    """Whether a text is a whole answer."""
    for token_id in [*TOKENIZER.encode(text), END]:
        if constraint.is_finished:
            return token_id == END
        logits = np.zeros(VOCAB_SIZE, np.float32)
        constraint.mask(logits)
        if not np.isfinite(logits[token_id]):
            return False
        constraint.advance(token_id)
    return True


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"allOf": [{"$ref": "#"}]},
        {"properties": {"a": {"$ref": "#", "minProperties": 1}}, "required": ["a"]},
        {"anyOf": [{"$ref": "#"}, {"$ref": "#"}], "type": "object"},
        {"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(20)]},
        {"$defs": {str(i): {"allOf": [{"$ref": f"#/$defs/{i + 1}"}]} for i in range(900)}, "$ref": "#/$defs/0"},
    ],
    ids=["itself", "a circle", "allOf itself", "itself required", "alternatives of itself", "2**20", "a long line"],
)
def test_schemas_without_end_are_refused_soon(compiler: ConstraintCompiler, schema: dict[str, Any]) -> None:
    """In a moment, with one line, and no overrun stack."""
    begin_s = time.monotonic()
    with pytest.raises(ConstraintError) as error:
        compiler.compile(ConstraintSpec.json_schema(schema))
    assert "\n" not in str(error.value)
    assert time.monotonic() - begin_s < 60
