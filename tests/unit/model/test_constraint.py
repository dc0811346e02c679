"""What a constraint lets through is valid, and what it cannot do it says in one line."""

import itertools
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.constraint import (
    MAX_CHOICES,
    MAX_GRAMMAR_BYTES,
    MAX_REGEX_BYTES,
    MAX_SCHEMA_PROPERTIES,
    MAX_TOOLS,
    TOOL_CALL_BEGIN,
    TOOL_CALL_END,
    Constraint,
    ConstraintCompiler,
    ConstraintError,
    ConstraintSpec,
    ToolSpec,
)
from model.tokenizer import Tokenizer
from tests.support.tiny_checkpoint import tiny_tokenizer_json

END = 256
VOCAB_SIZE = 257
TOKENIZER = Tokenizer(tiny_tokenizer_json())

ADDRESS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8, "pattern": "^[a-z]+$"},
        "zip": {"type": "integer", "minimum": 1000, "maximum": 9999},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
    },
    "required": ["city", "zip"],
    "additionalProperties": False,
}
RECURSIVE = {
    "$defs": {
        "node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "additionalProperties": False}
    },
    "$ref": "#/$defs/node",
}
WEATHER = ToolSpec(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"enum": ["Bern", "Rom"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
STOP = ToolSpec("stop-it", {})


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(tiny_tokenizer_json(), VOCAB_SIZE, [END])


def allowed_ids(constraint: Constraint, vocab_size: int = VOCAB_SIZE) -> set[int]:
    """What may come next."""
    logits = np.zeros(vocab_size, np.float32)
    constraint.mask(logits)
    return set(np.flatnonzero(np.isfinite(logits)).tolist())


def walk(constraint: Constraint, seed: int, *, max_tokens: int = 600, end_bias: float = 3.0) -> str:
    """A random answer that likes to end; only text that ended counts."""
    random = np.random.default_rng(seed)
    ids: list[int] = []
    for _ in range(max_tokens):
        if constraint.is_finished:
            return TOKENIZER.decode(ids)
        logits = random.standard_normal(VOCAB_SIZE).astype(np.float32)
        logits[END] += end_bias
        logits[TOKENIZER.encode('"}]')] += 2.0
        constraint.mask(logits)
        ids.append(int(logits.argmax()))
        constraint.advance(ids[-1])
    pytest.fail(f"no end within {max_tokens} tokens: {TOKENIZER.decode(ids)!r:.200}")


def feed(constraint: Constraint, text: str) -> None:
    for token_id in TOKENIZER.encode(text):
        constraint.advance(token_id)


def accepts(constraint: Constraint, text: str) -> bool:
    """Whether a whole text is an answer."""
    try:
        feed(constraint, text)
        return constraint.is_finished or END in allowed_ids(constraint)
    except ConstraintError:
        return False


def calls_in(text: str) -> list[dict[str, Any]]:
    """The calls of an answer that has nothing else in it."""
    pattern = re.escape(TOOL_CALL_BEGIN) + "(.*?)" + re.escape(TOOL_CALL_END)
    bodies = re.findall(pattern, text, re.DOTALL)
    assert text == "\n".join(f"{TOOL_CALL_BEGIN}{body}{TOOL_CALL_END}" for body in bodies)
    return [json.loads(body) for body in bodies]


def check_call(call: dict[str, Any]) -> None:
    schemas = {tool.name: tool.parameters for tool in (WEATHER, STOP)}
    assert list(call) == ["name", "arguments"]
    assert isinstance(call["arguments"], dict)
    jsonschema.validate(call["arguments"], schemas[call["name"]])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "schema",
    [
        ADDRESS,
        RECURSIVE,
        {"anyOf": [{"type": "number"}, {"type": "boolean"}, {"type": "null"}]},
        {"type": "string", "format": "date"},
        {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 2, "maxItems": 4},
        {
            "allOf": [
                {"type": "object", "required": ["a"]},
                {"properties": {"a": {"const": 'ä\n"/'}}, "additionalProperties": False},
            ]
        },
    ],
    ids=["object", "recursive", "anyOf", "format", "array", "allOf"],
)
def test_an_answer_follows_its_schema(compiler: ConstraintCompiler, schema: dict[str, Any], seed: int) -> None:
    """Whatever the logits are, the finished text is JSON that validates, with fixed white space."""
    text = walk(compiler.compile(ConstraintSpec.json_schema(schema)), seed)
    value = json.loads(text)
    jsonschema.validate(value, schema)
    if "\\" not in text:
        assert text == json.dumps(value, ensure_ascii=False) or isinstance(value, float | int)


LEAVES: list[dict[str, Any]] = [
    {"type": "integer", "minimum": -5, "maximum": 300},
    {"type": "string", "maxLength": 4},
    {"enum": ["x", 1, None, True]},
    {"const": {"k": [1]}},
    {"type": "boolean"},
]


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of closed objects with some properties required."""
    properties = st.dictionaries(st.text(max_size=3), values, max_size=3)
    return st.tuples(properties, st.booleans()).map(
        lambda pair: {
            "type": "object",
            "properties": pair[0],
            "required": list(pair[0]) if pair[1] else [],
            "additionalProperties": False,
        }
    )


def arrays(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return values.map(lambda items: {"type": "array", "items": items, "maxItems": 2})


def unions(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.lists(values, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches})


SCHEMAS = st.recursive(
    st.sampled_from(LEAVES), lambda values: st.one_of(objects(values), arrays(values), unions(values)), max_leaves=6
)


@settings(max_examples=40, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_an_answer_follows_any_schema(compiler: ConstraintCompiler, schema: dict[str, Any], seed: int) -> None:
    """The same for schemas nobody thought of."""
    jsonschema.validate(json.loads(walk(compiler.compile(ConstraintSpec.json_schema(schema)), seed)), schema)


@pytest.mark.parametrize("seed", range(5))
def test_a_json_object_is_one(compiler: ConstraintCompiler, seed: int) -> None:
    """Any object, and nothing but an object."""
    assert isinstance(json.loads(walk(compiler.compile(ConstraintSpec.json_object()), seed)), dict)


def test_white_space_is_fixed(compiler: ConstraintCompiler) -> None:
    """A model cannot go on with spaces; the request's own options do not change that."""
    schema = {**ADDRESS, "x-guidance": {"whitespace_flexible": True, "lenient": True}}
    spec = ConstraintSpec.json_schema(schema)
    assert accepts(compiler.compile(spec), '{"city": "bern", "zip": 3000}')
    for text in (
        '{"city":"bern", "zip": 3000}',
        '{ "city": "bern", "zip": 3000}',
        '{"city": "bern",  "zip": 3000}',
        "\n",
    ):
        assert not accepts(compiler.compile(spec), text)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "pattern",
    [r"\d{3}-\d{4}", "^ab?c$", "a/b\\/c\nd", "(cat|dog)s?", r"[^\x00-\x7f]{2}", "(a|a)*b", "(x+x+)+y"],
)
def test_an_answer_matches_its_regex(compiler: ConstraintCompiler, pattern: str, seed: int) -> None:
    """The whole text matches; patterns on which a backtracking matcher would never end are no different."""
    text = walk(compiler.compile(ConstraintSpec.regex(pattern)), seed)
    assert len(text) < 100 and re.fullmatch(pattern, text) if "x+" not in pattern else re.fullmatch("x{2,}y", text)


def test_a_regex_of_a_million_repetitions_takes_one_step_at_a_time(compiler: ConstraintCompiler) -> None:
    """No work is spent on what must follow much later."""
    constraint = compiler.compile(ConstraintSpec.regex("a{1000}{1000}"))
    feed(constraint, "a" * 2_000)
    assert allowed_ids(constraint) == set(TOKENIZER.encode("a"))


@pytest.mark.parametrize("seed", range(8))
def test_an_answer_is_one_of_the_choices(compiler: ConstraintCompiler, seed: int) -> None:
    """Also where one choice begins another, and with characters that a grammar would take for its own."""
    options = ["yes", "yes, but", "no", 'a"b\\c/', "grün 😀", "\n", "<|end|>"]
    assert walk(compiler.compile(ConstraintSpec.choice(options)), seed, end_bias=0.0).removesuffix("<|end|>") in options


def test_every_choice_is_accepted(compiler: ConstraintCompiler) -> None:
    """And nothing that merely begins like one."""
    options = ["yes", "yes, but", "no", 'a"b\\c/', "grün 😀", "\n"]
    spec = ConstraintSpec.choice(options)
    assert all(accepts(compiler.compile(spec), option) for option in options)
    assert not any(accepts(compiler.compile(spec), text) for text in ("", "ye", "yes,", "nono"))


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_follows_its_grammar(compiler: ConstraintCompiler, seed: int) -> None:
    """A sum in balanced brackets, which no regular expression describes."""
    lark = 'start: sum\nsum: NUMBER | "(" sum "+" sum ")"\nNUMBER: /[1-9][0-9]?/'
    text = walk(compiler.compile(ConstraintSpec.grammar(lark)), seed)
    assert re.fullmatch(r"[0-9+()]+", text)
    assert text.count("(") == text.count(")") == text.count("+")


@pytest.mark.parametrize("allows_many", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_required_tools_are_called(compiler: ConstraintCompiler, seed: int, allows_many: bool) -> None:
    """The answer is nothing but calls, each with a tool's name and arguments of its schema."""
    spec = ConstraintSpec.tools([WEATHER, STOP], is_required=True, allows_many=allows_many)
    calls = calls_in(walk(compiler.compile(spec), seed, end_bias=0.0 if allows_many else 3.0, max_tokens=3_000))
    assert len(calls) >= 1 if allows_many else len(calls) == 1
    for call in calls:
        check_call(call)


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern"}}\n</tool_call>'
STOP_CALL = '<tool_call>\n{"name": "stop-it", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "auto_one", "auto_many", "required_one", "required_many"),
    [
        ("", True, True, False, False),
        ("Hello <tool_ca", True, True, False, False),
        (CALL, True, True, True, True),
        ("I look.\n" + CALL, True, True, False, False),
        (f"{CALL}\n{STOP_CALL}", False, True, False, True),
        (f"So: {CALL}\n{STOP_CALL}", False, True, False, False),
        (f"{CALL}\n\n{STOP_CALL}", False, False, False, False),
        (f"{CALL} and more", False, False, False, False),
        ("Write <tool_call> for a call", False, False, False, False),
        (CALL.replace("Bern", "Oslo"), False, False, False, False),
        (CALL.replace("get_weather", "get_time"), False, False, False, False),
        (STOP_CALL.replace("{}}", "[]}"), False, False, False, False),
        (CALL.removesuffix("\n</tool_call>"), False, False, False, False),
    ],
)
def test_what_is_an_answer_with_tools(
    compiler: ConstraintCompiler, text: str, auto_one: bool, auto_many: bool, required_one: bool, required_many: bool
) -> None:
    """Free text only where calls are not required, and after <tool_call> nothing but a call."""
    accepted = [
        accepts(compiler.compile(ConstraintSpec.tools([WEATHER, STOP], is_required=required, allows_many=many)), text)
        for required, many in ((False, False), (False, True), (True, False), (True, True))
    ]
    assert accepted == [auto_one, auto_many, required_one, required_many]


@pytest.mark.parametrize("seed", range(3))
def test_free_text_may_end_anywhere(compiler: ConstraintCompiler, seed: int) -> None:
    """A model that does not want to call a tool is not made to."""
    constraint = compiler.compile(ConstraintSpec.tools([WEATHER], is_required=False, allows_many=True))
    for token_id in TOKENIZER.encode("Grüße, <b> <tool_cal"):
        constraint.advance(token_id)
    assert END in allowed_ids(constraint)
    constraint.advance(END)
    assert constraint.is_finished


def test_a_local_reference_of_a_tool_is_to_its_own_parameters(compiler: ConstraintCompiler) -> None:
    """Two tools may use one name for different definitions."""
    tools = [
        ToolSpec(
            name, {"$defs": {"v": {"const": value}}, "properties": {"v": {"$ref": "#/$defs/v"}}, "required": ["v"]}
        )
        for name, value in (("one", 1), ("two", 2))
    ]
    spec = ConstraintSpec.tools(tools, is_required=True, allows_many=False)
    call = '<tool_call>\n{"name": "%s", "arguments": {"v": %d}}\n</tool_call>'
    assert [accepts(compiler.compile(spec), call % pair) for pair in (("one", 1), ("two", 2), ("one", 2))] == [
        True,
        True,
        False,
    ]


def test_it_is_finished_when_nothing_may_follow(compiler: ConstraintCompiler) -> None:
    """At the last character if the text cannot grow, otherwise with the end token; then only that may come."""
    constraint = compiler.compile(ConstraintSpec.choice(["yes", "yes!"]))
    (mark,) = TOKENIZER.encode("!")
    seen = []
    for token_ids in (TOKENIZER.encode("yes"), [mark], [END]):
        for token_id in token_ids:
            constraint.advance(token_id)
        seen.append((constraint.is_finished, allowed_ids(constraint)))
    assert seen == [(False, {mark, END}), (True, {END}), (True, {END})]


def test_masking_changes_nothing(compiler: ConstraintCompiler) -> None:
    """The same mask comes again, and logits of allowed tokens are as they were."""
    constraint = compiler.compile(ConstraintSpec.regex("[ab]c"))
    logits = np.arange(VOCAB_SIZE, dtype=np.float32)
    constraint.mask(logits)
    assert allowed_ids(constraint) == allowed_ids(constraint) == set(TOKENIZER.encode("ab"))
    assert all(logits[token_id] == token_id for token_id in TOKENIZER.encode("ab"))


def test_every_end_token_ends_an_answer() -> None:
    """All of the model's end tokens are allowed where one is, and only there."""
    ends = [*TOKENIZER.encode("\x00\x01"), END]
    compiler = ConstraintCompiler(tiny_tokenizer_json(), VOCAB_SIZE, ends)
    for end in ends:
        constraint = compiler.compile(ConstraintSpec.regex("a+"))
        assert not allowed_ids(constraint) & set(ends)
        feed(constraint, "a")
        assert allowed_ids(constraint) == {*ends, *TOKENIZER.encode("a")}
        constraint.advance(end)
        assert constraint.is_finished


@pytest.mark.parametrize("vocab_size", [258, 320, 1_000])
def test_ids_beyond_the_tokenizer_are_never_allowed(vocab_size: int) -> None:
    """Not even by a grammar that allows every token."""
    compiler = ConstraintCompiler(tiny_tokenizer_json(), vocab_size, [END])
    for spec in (ConstraintSpec.grammar("start: <[*]> /.*/"), ConstraintSpec.regex("(.|\n)*")):
        assert max(allowed_ids(compiler.compile(spec), vocab_size)) <= END


def test_constraints_of_one_spec_are_independent(compiler: ConstraintCompiler) -> None:
    """What one answer says moves no other."""
    spec = ConstraintSpec.regex("[ab]{3}c")
    first, second = compiler.compile(spec), compiler.compile(spec)
    feed(first, "aab")
    assert allowed_ids(first) == set(TOKENIZER.encode("c"))
    assert allowed_ids(second) == allowed_ids(compiler.compile(spec)) == set(TOKENIZER.encode("ab"))


def test_a_spec_has_a_key() -> None:
    """Equal for the same constraint, different for another, and for another kind of the same text."""
    specs = [
        ConstraintSpec.json_object(),
        ConstraintSpec.json_schema(ADDRESS),
        ConstraintSpec.json_schema({"type": "object"}),
        ConstraintSpec.regex("a"),
        ConstraintSpec.grammar("start: /a/"),
        *(
            ConstraintSpec.tools([STOP], is_required=a, allows_many=b)
            for a, b in itertools.product([False, True], repeat=2)
        ),
    ]
    assert len({spec.key for spec in specs}) == len(specs)
    assert len({*specs}) == len(specs)
    assert ConstraintSpec.regex("a").key == ConstraintSpec.regex("a").key


def test_the_cache_is_bounded() -> None:
    """The prototype used longest ago goes first."""
    compiler = ConstraintCompiler(tiny_tokenizer_json(), VOCAB_SIZE, [END], cache_entries=2)
    specs = [ConstraintSpec.choice([text]) for text in "abc"]
    for spec in (specs[0], specs[1], specs[0], specs[2]):
        compiler.compile(spec)
    assert list(compiler._prototypes) == [specs[0].key, specs[2].key]


def test_compiling_is_thread_safe() -> None:
    """Many threads, few specs, one compiler that has not started yet."""
    compiler = ConstraintCompiler(tiny_tokenizer_json(), VOCAB_SIZE, [END], cache_entries=3)

    def answer(index: int) -> bool:
        option = "abcdefgh"[index % 8] * 3
        return walk(compiler.compile(ConstraintSpec.choice([option])), index) == option

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(answer, range(64)))


MANY_STATES = "[ab]*a[ab]{20}c"  # a lexer of a million states, of which a random text finds a new one at each step


def read_at_random(constraint: Constraint, num_tokens: int, seed: int = 0) -> None:
    """Mask and advance, as an engine does."""
    for token_id in np.random.default_rng(seed).choice(TOKENIZER.encode("ab"), num_tokens).tolist():
        constraint.mask(np.zeros(VOCAB_SIZE, np.float32))
        constraint.advance(token_id)


def test_a_lexer_that_is_full_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies share a lexer: what one does to it ends neither that one, nor its neighbour, nor who comes later."""
    monkeypatch.setattr("model.constraint.compiler._MOST_LEXER_STATES", 1_000)
    compiler = ConstraintCompiler(tiny_tokenizer_json(), VOCAB_SIZE, [END])
    spec = ConstraintSpec.regex(MANY_STATES)
    first, neighbour = compiler.compile(spec), compiler.compile(spec)
    prototype = compiler._prototypes[spec.key]
    read_at_random(first, 600, seed=1)
    read_at_random(neighbour, 600, seed=2)
    assert compiler._prototypes == {}  # the full one is not kept
    for constraint in (first, neighbour, compiler.compile(spec)):
        assert accepts(constraint, "a" + "b" * 20 + "c")
    assert compiler._prototypes[spec.key] is not prototype


def test_a_lexer_that_is_full_again_at_once_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constraint that would be compiled anew every few tokens is given up."""
    monkeypatch.setattr("model.constraint.compiler._MOST_LEXER_STATES", 30)
    compiler = ConstraintCompiler(tiny_tokenizer_json(), VOCAB_SIZE, [END])
    constraint = compiler.compile(ConstraintSpec.regex(MANY_STATES))
    with pytest.raises(ConstraintError, match=r"^the constraint failed after \d+ tokens: lexer error: too many states"):
        read_at_random(constraint, 1_500)


def test_a_token_that_is_not_allowed_is_an_error(compiler: ConstraintCompiler) -> None:
    """The engine would end the request; other answers of the same spec go on."""
    spec = ConstraintSpec.choice(["yes"])
    constraint = compiler.compile(spec)
    with pytest.raises(ConstraintError, match=r"^the constraint failed after 1 tokens: .+$"):
        constraint.advance(TOKENIZER.encode("n")[0])
    with pytest.raises(ConstraintError, match="failed after"):
        constraint.mask(np.zeros(VOCAB_SIZE, np.float32))
    assert accepts(compiler.compile(spec), "yes")


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


def chain(num_rules: int, last: str) -> str:
    """Rules that each name the next."""
    return "start: r0\n" + "".join(f'r{i}: r{i + 1} "a"\n' for i in range(num_rules)) + f"r{num_rules}: {last}"


def properties(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{index}": {} for index in range(count)}}


spec = ConstraintSpec
LIMITS: dict[str, tuple[Callable[[], ConstraintSpec], str]] = {
    "schema bytes": (
        lambda: spec.json_schema({"const": "x" * 65_536}),
        r"the schema has 65,549 bytes; allowed are 65,536",
    ),
    "schema depth": (lambda: spec.json_schema(nested(33)), "more than 32 deep"),
    "schema depth of 100,000": (lambda: spec.json_schema(nested(100_000)), "more than 32 deep"),
    "properties": (
        lambda: spec.json_schema({"anyOf": [properties(600), properties(401)]}),
        "1,001 properties; allowed are 1,000",
    ),
    "remote reference": (
        lambda: spec.json_schema({"$ref": "http://a.example/b.json#/c"}),
        "refers to 'http://a.example",
    ),
    "reference to a file": (lambda: spec.json_schema({"items": [{"$ref": "b.json"}]}), "refers to 'b.json'"),
    "not JSON": (lambda: spec.json_schema({"const": float("nan")}), "not JSON"),
    "not JSON either": (lambda: spec.json_schema({"const": {1, 2}}), "not JSON"),
    "half a pair": (lambda: spec.json_schema({"const": "\ud800"}), "half a surrogate pair"),
    "not an object": (lambda: spec.json_schema([]), "is \\[\\]; a JSON object is needed"),  # type: ignore[arg-type]
    "regex bytes": (lambda: spec.regex("ä" * 2_049), "the regex has 4,098 bytes; allowed are 4,096"),
    "regex of half a pair": (lambda: spec.regex("\udc00"), "half a surrogate pair"),
    "grammar bytes": (lambda: spec.grammar("a" * 65_537), "the grammar has 65,537 bytes; allowed are 65,536"),
    "no choice": (lambda: spec.choice([]), "0 choices were given; allowed are 1 to 1,000"),
    "choices": (lambda: spec.choice(["x"] * 1_001), "1,001 choices were given"),
    "empty choice": (lambda: spec.choice(["a", ""]), "choice 1 is empty"),
    "choices' bytes": (lambda: spec.choice(["x" * 40_000, "y" * 40_000]), "80,000 bytes; allowed are 65,536"),
    "no tool": (lambda: spec.tools([], is_required=True, allows_many=True), "0 tools were given; allowed are 1 to 128"),
    "tools": (lambda: tools_of(129), "129 tools were given"),
    "tools' bytes": (lambda: tools_of(5, {"description": "x" * 60_000}), "bytes together; allowed are 262,144"),
    "tools' properties": (lambda: tools_of(5, properties(900)), "4,500 properties together; allowed are 4,000"),
    "same name": (lambda: spec.tools([STOP, STOP], is_required=True, allows_many=True), "2 tools are named 'stop-it'"),
    "tool of a string": (lambda: tools_of(1, {"type": "string"}), "of tool 'tool_0' have the type 'string'"),
    "tool's depth": (lambda: tools_of(1, nested(33)), "of tool 'tool_0' nests objects and arrays more than 32 deep"),
    "tool's reference": (lambda: tools_of(1, {"$ref": "x"}), "of tool 'tool_0': refers to 'x'"),
}


def tools_of(count: int, parameters: dict[str, Any] | None = None) -> ConstraintSpec:
    tools = [ToolSpec(f"tool_{index}", parameters or {}) for index in range(count)]
    return spec.tools(tools, is_required=True, allows_many=True)


@pytest.mark.parametrize("name", LIMITS)
def test_what_is_too_large_is_refused_before_it_is_compiled(name: str) -> None:
    """The message is one line, which says what was given and what is allowed."""
    make, message = LIMITS[name]
    with pytest.raises(ConstraintError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "make",
    [
        lambda: spec.json_schema(nested(32)),
        lambda: spec.json_schema(properties(MAX_SCHEMA_PROPERTIES)),
        lambda: spec.json_schema({"const": "x" * 65_000}),
        lambda: spec.regex("a" * MAX_REGEX_BYTES),
        lambda: spec.grammar('start: "a" //' + "x" * (MAX_GRAMMAR_BYTES - 13)),
        lambda: spec.choice([f"{index:06}" for index in range(MAX_CHOICES)]),
        lambda: tools_of(MAX_TOOLS, properties(30)),
    ],
    ids=["depth", "properties", "schema", "regex", "grammar", "choices", "tools"],
)
def test_what_is_just_not_too_large_works(compiler: ConstraintCompiler, make: Callable[[], ConstraintSpec]) -> None:
    """A limit that nothing reaches in practice would be a lie; the second step is the widest."""
    constraint = compiler.compile(make())
    while not constraint.is_finished and len(constraint._token_ids) < 3:
        constraint.advance(min(allowed_ids(constraint) - {END}))
    assert allowed_ids(constraint)


NOT_COMPILED: dict[str, tuple[Callable[[], ConstraintSpec], str]] = {
    "not": (lambda: spec.json_schema({"not": {}}), "not"),
    "lenient not": (lambda: spec.json_schema({"not": {}, "x-guidance": {"lenient": True}}), "not"),
    "uniqueItems": (lambda: spec.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    "overlapping oneOf": (lambda: spec.json_schema({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
    "unknown type": (lambda: spec.json_schema({"type": "tune"}), "tune"),
    "dangling reference": (lambda: spec.json_schema({"$ref": "#/$defs/tune"}), "tune"),
    "endless reference": (lambda: spec.json_schema({"$ref": "#"}), "nothing can match"),
    "minimum above maximum": (
        lambda: spec.json_schema({"type": "integer", "minimum": 3, "maximum": 2}),
        "nothing can match",
    ),
    "empty enum": (lambda: spec.json_schema({"enum": []}), "nothing can match"),
    "wrong properties": (lambda: spec.json_schema({"properties": 3}), "properties must be"),
    "bad pattern": (lambda: spec.json_schema({"type": "string", "pattern": "("}), "unclosed"),
    "look-around in pattern": (lambda: spec.json_schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
    "product of alternatives": (
        lambda: spec.json_schema(
            {
                "allOf": [
                    {"anyOf": [{"required": [f"a{i}"], "properties": {f"a{i}": {"const": j}}} for j in range(2)]}
                    for i in range(14)
                ]
            }
        ),
        "too (big|large)",
    ),
    "unclosed regex": (lambda: spec.regex("a("), "unclosed group"),
    "look-around": (lambda: spec.regex("(?=a)b"), "look-around"),
    "reference back": (lambda: spec.regex(r"(a)\1"), "back-reference"),
    "word boundary": (lambda: spec.regex(r"\ba"), "word boundary"),
    "impossible regex": (lambda: spec.regex("[a&&b]"), "nothing can match"),
    "nested regex": (lambda: spec.regex("(" * 2_000 + ")" * 2_000), "nest"),
    "empty grammar": (lambda: spec.grammar(""), "no start rule"),
    "no grammar": (lambda: spec.grammar("{]"), "."),
    "list of grammars": (lambda: spec.grammar('{"grammars": []}'), "expecting rule"),
    "unknown rule": (lambda: spec.grammar("start: tune"), "tune"),
    "rule of itself": (lambda: spec.grammar("start: start"), "nothing can match"),
    "nested brackets": (lambda: spec.grammar("start: " + "(" * 30_000 + '"a"' + ")" * 30_000), "too deeply nested"),
    "exponential terminal": (
        lambda: spec.grammar("start: R0\n" + "".join(f"R{i}: R{i + 1} R{i + 1}\n" for i in range(60)) + 'R60: "b"'),
        "too big",
    ),
    "large grammar": (lambda: spec.grammar(chain(3_000, '"b"')), "too big"),
    "deep error": (lambda: spec.grammar(chain(3_500, "tune")), "tune"),
    "deep optional error": (
        lambda: spec.grammar(
            "start: r0\n" + "".join(f"r{i}: {'(' * 20}r{i + 1}{')?' * 20}\n" for i in range(800)) + "r800: tune"
        ),
        "tune",
    ),
    "bad tool": (lambda: tools_of(1, {"properties": {"a": {"not": {"const": 1}}}}), "not"),
}


@pytest.mark.parametrize("name", NOT_COMPILED)
def test_what_cannot_be_compiled_is_refused(compiler: ConstraintCompiler, name: str) -> None:
    """In one line, without a trace in the cache, and the next constraint works."""
    make, message = NOT_COMPILED[name]
    known = list(compiler._prototypes)
    for _ in range(2):
        with pytest.raises(ConstraintError, match=message) as error:
            compiler.compile(make())
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300
    assert list(compiler._prototypes) == known
    assert accepts(compiler.compile(ConstraintSpec.choice(["yes"])), "yes")


def test_a_deep_schema_does_not_overrun_the_stack(compiler: ConstraintCompiler) -> None:
    """1,400 definitions, each of arrays of the next, end the process on a thread with the usual stack."""
    definitions: dict[str, Any] = {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(1_400)}
    definitions["1400"] = {"type": "string"}
    constraint = compiler.compile(ConstraintSpec.json_schema({"$ref": "#/$defs/0", "$defs": definitions}))
    assert accepts(constraint, "[[[]]]")


@pytest.mark.parametrize(
    ("tokenizer_json", "ends", "message"),
    [
        (tiny_tokenizer_json(), [], "no end token"),
        (tiny_tokenizer_json(), [400], "tokenizer"),
        ("{}", [END], "tokenizer"),
    ],
    ids=["no end token", "end token out of range", "no tokenizer"],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(tokenizer_json: str, ends: list[int], message: str) -> None:
    """When the first constraint is compiled, not when the server starts."""
    compiler = ConstraintCompiler(tokenizer_json, VOCAB_SIZE, ends)
    with pytest.raises(ConstraintError, match=message):
        compiler.compile(ConstraintSpec.json_object())


@pytest.mark.parametrize(
    ("schema", "most"),
    [
        ({"type": "integer"}, 16),
        ({"type": "integer", "minimum": 5}, 16),
        ({"type": ["integer", "null"]}, 16),
        ({"type": "number"}, 23),
        ({"type": "number", "minimum": 0, "maximum": 1}, 8),
        ({"type": "number", "exclusiveMinimum": 4, "exclusiveMaximum": 5}, 8),
        ({"type": "number", "minimum": 1e-7, "maximum": 2e-7}, None),
        ({"type": "number", "multipleOf": 0.25}, 19),
    ],
)
@pytest.mark.parametrize("likes", ["123456789", ".987654321", "0."])
def test_numbers_end_where_a_schema_leaves_them_open(
    compiler: ConstraintCompiler, schema: dict[str, Any], most: int | None, likes: str
) -> None:
    """A chooser that always prefers digits comes to an end; what a schema says of bounds and steps stays."""
    constraint, text = compiler.compile(ConstraintSpec.json_schema(schema)), ""
    while not constraint.is_finished and len(text) < 60:
        logits = np.full(VOCAB_SIZE, -1.0, np.float32)
        logits[[TOKENIZER.encode(character)[0] for character in likes]] = 1.0
        constraint.mask(logits)
        token_id = int(logits.argmax())
        constraint.advance(token_id)
        text += TOKENIZER.token_text(token_id) if token_id != END else ""
    if most is not None:
        assert len(text) <= most
        jsonschema.validate(json.loads(text), {**schema, "multipleOf": 0.25} if "multipleOf" in schema else schema)


def test_data_in_a_schema_is_no_schema(compiler: ConstraintCompiler) -> None:
    """What stands in const, enum and default is not given bounds."""
    value = {"type": "integer"}
    constraint, ids = compiler.compile(ConstraintSpec.json_schema({"const": value})), []
    while not constraint.is_finished:
        logits = np.zeros(VOCAB_SIZE, np.float32)
        constraint.mask(logits)
        ids.append(int(logits.argmax()))
        constraint.advance(ids[-1])
    assert json.loads(TOKENIZER.decode([token_id for token_id in ids if token_id != END])) == value
