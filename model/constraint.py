"""Constraints on what an answer may say: a JSON schema, a regular expression, a choice, a grammar, or calls of tools.

The only module that knows llguidance, which turns a constraint into the set of tokens that may come next. A caller
describes what it wants (`ConstraintSpec`), has it compiled once (`ConstraintCompiler`), and walks one answer through it
(`Constraint`).

Shapes: V vocabulary of the model's logits, which may be larger than the tokenizer's.
"""

import contextlib
import json
import os
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark

TOOL_CALL_BEGIN = "<tool_call>\n"
TOOL_CALL_END = "\n</tool_call>"

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_PROPERTIES = 1_000
MAX_REGEX_BYTES = 4 * 1024
MAX_GRAMMAR_BYTES = 64 * 1024
MAX_CHOICES = 1_000
MAX_CHOICES_BYTES = 64 * 1024
MAX_TOOLS = 128
MAX_CALLS = 8  # of one answer: a small model repeats itself
MAX_TOOLS_BYTES = 256 * 1024
MAX_TOOLS_PROPERTIES = 4_000

# A request may name these in its own "x-guidance"; ours replace them. White space is fixed, so that a small model
# cannot go on with spaces for ever.
_JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Without it llguidance follows text that has no alternative to its end in one step: 1.4 s for the regex a{1000}{1000}.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
# Free text, and free text up to where a call begins: lazy, so that the first `<tool_call>` ends it.
_TEXT_RULES = r"""TEXT: /(.|\n)*/
text_head[lazy]: /(.|\n)*<tool_call>/
text_begin: text_head "\n"
"""
_MOST_NUMBER = 10**15  # below 2**53, so that it is exact in llguidance's arithmetic
_NUMBER_STEP = 1e-6
_DATA_KEYWORDS = {"const", "enum", "default", "examples"}  # what they hold is data, not schemas
_NAME_KEYWORDS = {"properties", "patternProperties", "$defs", "definitions"}  # what they hold are schemas by name
_MOST_ERROR_CHARACTERS = 200
_LEXER_ERROR = "lexer error"
_MIN_TOKENS_BETWEEN_REBUILDS = 16
_REPLAYED_TOKENS_PER_MASK = 64
_MOST_LEXER_STATES = 20_000  # of 1 to 2 kB
_MOST_WRITTEN_SYMBOLS = 5_000
_MOST_GENERATED_SYMBOLS = 60_000  # llguidance panics above 65,525
# llguidance descends one frame per nested rule: 3,000 rules, each naming the next, overrun the usual 8 MiB and end the
# process. 64 KiB of grammar fit 64 MiB; this is address space, of which only what is used is committed.
_BUILDER_STACK_BYTES = 256 * 1024 * 1024


class ConstraintError(ValueError):
    """A constraint that cannot be compiled or is too large, or an answer that left it; the message is one line."""


@dataclass(frozen=True)
class ToolSpec:
    """One tool that may be called. parameters: the JSON schema of its arguments, which are an object."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class ConstraintSpec:
    """What an answer must look like; made by the class methods, which check every limit. Cheap: nothing is compiled.

    kind: for messages. lark: the whole of it as a grammar for llguidance.
    """

    kind: str
    lark: str

    @property
    def key(self) -> tuple[str, str]:
        """Equal for specs that allow the same answers in the same way."""
        return self.kind, self.lark

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> "ConstraintSpec":
        """JSON that follows a schema (draft 2020-12), compact: ", " and ": " and no other white space.

        Properties come in the order of the schema.

        Raises:
            ConstraintError: the schema is too large, or refers to another document.
        """
        return cls("json_schema", f"start: {_inline_json(_checked_schema(schema, 'the schema'))}")

    @classmethod
    def json_object(cls) -> "ConstraintSpec":
        """Any JSON object, compact."""
        return cls("json_object", f"start: {_inline_json({'type': 'object'})}")

    @classmethod
    def regex(cls, pattern: str) -> "ConstraintSpec":
        r"""Text that a regular expression matches as a whole, in the syntax of Rust's `regex` crate.

        `\d` is an ASCII digit; there is no looking around and no reference back.

        Raises:
            ConstraintError: the pattern is too long.
        """
        _check_bytes(pattern, "the regex", MAX_REGEX_BYTES)
        return cls("regex", f"start: /{regex_to_lark(pattern)}/")

    @classmethod
    def choice(cls, options: Sequence[str]) -> "ConstraintSpec":
        """One of these strings.

        Raises:
            ConstraintError: there is none, there are too many, or one is empty.
        """
        if not 1 <= len(options) <= MAX_CHOICES:
            raise ConstraintError(f"{len(options):,} choices were given; allowed are 1 to {MAX_CHOICES:,}")
        if "" in options:
            raise ConstraintError(f"choice {list(options).index('')} is empty; each must have at least one character")
        _check_bytes("".join(options), "the choices together", MAX_CHOICES_BYTES)
        return cls("choice", "start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, options)))

    @classmethod
    def grammar(cls, lark: str) -> "ConstraintSpec":
        """Text of a context-free grammar in llguidance's variant of Lark; it begins with the rule `start`.

        Raises:
            ConstraintError: the grammar is too long.
        """
        _check_bytes(lark, "the grammar", MAX_GRAMMAR_BYTES)
        return cls("grammar", lark)

    @classmethod
    def tools(cls, tools: Sequence[ToolSpec], *, is_required: bool, allows_many: bool) -> "ConstraintSpec":
        r"""Calls of tools, each `<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>`.

        is_required: the answer is one call; otherwise it is free text, a call, or free text and then a call. Free text
        may end anywhere, but `<tool_call>` in it begins a call. allows_many: up to MAX_CALLS in all, each after a
        newline.

        Raises:
            ConstraintError: too many tools, two with one name, or parameters that are too large or not an object's.
        """
        _check_tools(tools)
        more = f"({_quoted(chr(10) + TOOL_CALL_BEGIN)} call_body){{0,{MAX_CALLS - 1}}}" if allows_many else ""
        start = f"begin call_body {more}" if is_required else f"TEXT | text_begin call_body {more}"
        rules = [
            f"start: {start}",
            f"call_body: ({' | '.join(f'tool_{index}' for index in range(len(tools)))}) {_quoted(TOOL_CALL_END)}",
            f"begin: {_quoted(TOOL_CALL_BEGIN)}",
            _TEXT_RULES,
            *(_tool_rule(index, tool) for index, tool in enumerate(tools)),
        ]
        return cls("tools", "\n".join(rules))


class Constraint:
    """One answer's way through a constraint. Not thread-safe; copies of one prototype may be used on several threads.

    The lexer's states, found as text is read, are shared by all copies of a prototype, and so is their limit. Where it
    is reached, a constraint goes on with a lexer of its own, and gives up only if its own text fills that too.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: "_Vocabulary", rebuild: Callable[[], LLMatcher]) -> None:
        """Take over the matcher. rebuild: makes a fresh one for the same constraint."""
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._rebuild = rebuild
        self._token_ids: list[int] = []
        self._rebuilt_at = -_MIN_TOKENS_BETWEEN_REBUILDS

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """Set the logits [V] of what may not come next to -inf, in place; the constraint's own state stays.

        End tokens are left where the answer may end here; once the constraint is finished, only they are. Usually
        0.1 ms without the interpreter lock; llguidance's limits on a step stop hostile constraints after about 30 ms,
        and the one change of a lexer takes as long as compiling and reading the answer again.

        Raises:
            ConstraintError: the constraint became too complex here, or the model has no token that may come next.
        """
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            self._recover()
            bits = self._matcher.compute_bitmask()
            self._check()
        allowed = self._vocabulary.allowed(bits)
        if not allowed.any():
            raise ConstraintError("the constraint leaves no token of the model's vocabulary to choose")
        np.copyto(logits, -np.inf, where=~allowed)

    def advance(self, token_id: int) -> None:
        """Record that this token was chosen. Unlike `mask`, keeps the interpreter lock; takes microseconds.

        Raises:
            ConstraintError: it was not allowed, or the constraint became too complex here.
        """
        self._token_ids.append(self._vocabulary.matched_id(token_id))
        if not self._matcher.consume_token(self._token_ids[-1]):
            self._recover()

    @property
    def is_finished(self) -> bool:
        """Whether nothing may follow: the text is complete and cannot grow, or an end token was taken."""
        return bool(self._matcher.is_stopped())

    def _recover(self) -> None:
        """If the lexer failed, go on with one of one's own, brought to the same place; otherwise raise."""
        is_too_soon = len(self._token_ids) - self._rebuilt_at < _MIN_TOKENS_BETWEEN_REBUILDS
        if is_too_soon or not self._matcher.get_error().startswith(_LEXER_ERROR):
            self._check()
        self._rebuilt_at = len(self._token_ids)
        self._matcher = self._rebuild()
        for position, token_id in enumerate(self._token_ids):
            if position % _REPLAYED_TOKENS_PER_MASK == 0:
                self._matcher.compute_bitmask()  # renews what the lexer may spend
            self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            error = _one_line(self._matcher.get_error())
            raise ConstraintError(f"the constraint failed after {len(self._token_ids)} tokens: {error}")


class ConstraintCompiler:
    """Compiles constraints for one tokenizer, and remembers the last ones. Thread-safe.

    Compiling takes about a millisecond, at worst about a second, and releases the interpreter lock; call it off the
    event loop. One compilation runs at a time, so that hostile constraints occupy one core.
    """

    def __init__(
        self, tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int], *, cache_entries: int = 64
    ) -> None:
        """Cheap: the tokenizer is read on first use.

        vocab_size: V of the logits. eos_token_ids: every token that ends an answer. cache_entries: prototypes to keep.
        """
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._cache_entries = cache_entries
        self._prototypes: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._cache_lock = threading.Lock()
        self._builder_lock = threading.Lock()
        self._builder: _Builder | None = None

    def warm_up(self) -> None:
        """Read the tokenizer now, which keeps the interpreter lock for a moment, rather than at the first request."""
        with contextlib.suppress(ConstraintError):  # a tokenizer that cannot be used is told to who asks for it
            self.compile(ConstraintSpec.json_object())

    def compile(self, spec: ConstraintSpec) -> Constraint:
        """A fresh constraint for one answer.

        Raises:
            ConstraintError: it cannot be compiled, or nothing can match it.
        """
        builder = self._started_builder()
        with self._cache_lock:
            prototype = self._prototypes.get(spec.key)
            if prototype is not None:
                self._prototypes.move_to_end(spec.key)
        if prototype is None:
            prototype = builder.build(spec)
            self._remember(spec, prototype)

        def rebuild() -> LLMatcher:
            self._forget(spec, prototype)
            return builder.build(spec, is_urgent=True)

        return Constraint(prototype.deep_copy(), builder.vocabulary, rebuild)

    def _started_builder(self) -> "_Builder":
        with self._builder_lock:
            if self._builder is None:
                self._builder = _Builder(self._tokenizer_json, self._vocab_size, self._eos_token_ids)
            return self._builder

    def _remember(self, spec: ConstraintSpec, prototype: LLMatcher) -> None:
        with self._cache_lock:
            self._prototypes[spec.key] = prototype
            while len(self._prototypes) > self._cache_entries:
                self._prototypes.popitem(last=False)

    def _forget(self, spec: ConstraintSpec, prototype: LLMatcher) -> None:
        """Keep no prototype whose lexer has failed."""
        with self._cache_lock:
            if self._prototypes.get(spec.key) is prototype:
                del self._prototypes[spec.key]


class _Vocabulary:
    """Which ids llguidance speaks of: those of the tokenizer, and one of the end tokens for all of them."""

    def __init__(self, num_tokens: int, vocab_size: int, end_token_ids: Sequence[int], matched_end_id: int) -> None:
        """num_tokens: ids of the tokenizer. vocab_size: V. matched_end_id: the end token that llguidance knows."""
        self._num_tokens = num_tokens
        self._vocab_size = vocab_size
        self._end_token_ids = list(end_token_ids)
        self._matched_end_id = matched_end_id

    def matched_id(self, token_id: int) -> int:
        """The id by which a matcher knows a token."""
        return self._matched_end_id if token_id in self._end_token_ids else token_id

    def allowed(self, bits: bytes) -> npt.NDArray[np.bool_]:
        """From a matcher's mask, one bit per token, to bool [V]; ids that the tokenizer does not have are False."""
        size = max(self._vocab_size, self._num_tokens)
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), count=size, bitorder="little").view(np.bool_)
        allowed[self._num_tokens :] = False
        allowed[self._end_token_ids] = allowed[self._matched_end_id]
        return allowed[: self._vocab_size]


class _Builder:
    """Builds matchers, one at a time, on threads whose stack is large enough for the deepest grammar."""

    def __init__(self, tokenizer_json: str, vocab_size: int, end_token_ids: Sequence[int]) -> None:
        """Read the tokenizer (0.3 s for 49,152 tokens) and start the threads."""
        if not end_token_ids:
            raise ConstraintError("the model names no end token; a constraint needs at least one to end an answer")
        end_id = min(end_token_ids)
        # With RUST_BACKTRACE=1, an error at the bottom of a deep grammar takes minutes: a trace for each of its levels.
        os.environ.setdefault("RUST_LIB_BACKTRACE", "0")
        try:
            self._tokenizer = LLTokenizer(tokenizer_json, eos_token=end_id)
        except ValueError as error:
            raise ConstraintError(f"constraints cannot use this tokenizer: {_one_line(str(error))}") from error
        self.vocabulary = _Vocabulary(self._tokenizer.vocab_size, vocab_size, end_token_ids, end_id)
        self._thread, self._urgent_thread = _deep_thread(), _deep_thread()

    def build(self, spec: ConstraintSpec, *, is_urgent: bool = False) -> LLMatcher:
        """A matcher at its beginning. is_urgent: do not wait for others, for an engine does.

        Raises:
            ConstraintError: there is none for this spec.
        """
        thread = self._urgent_thread if is_urgent else self._thread
        return thread.submit(self._build, spec).result()

    def _build(self, spec: ConstraintSpec) -> LLMatcher:
        # As a list of one grammar: a text that begins with a brace would be read as such a list itself.
        grammar = json.dumps({"grammars": [{"lark_grammar": spec.lark + _OPTIONS}]})
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_limits(spec.kind))
        if not matcher.is_error():
            matcher.compute_bitmask()  # finds what nothing can match, and what is too complex from the start
        if matcher.is_error():
            raise ConstraintError(f"{spec.kind} cannot be compiled: {_one_line(matcher.get_error())}")
        return matcher


def _deep_thread() -> ThreadPoolExecutor:
    """One thread with a large stack. Threads that others start meanwhile get one too; it is only address space."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="constraint")
    usual_bytes = threading.stack_size(_BUILDER_STACK_BYTES)
    try:
        thread.submit(int).result()  # starts it
    finally:
        threading.stack_size(usual_bytes)
    return thread


def _limits(kind: str) -> LLParserLimits:
    """Bounds on a constraint's time and memory.

    Sizes are in symbols: an Earley row is checked only once it is complete, which
    takes time quadratic in the grammar's size, so a grammar written by hand has less than a generated one.
    """
    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_items_in_row=5_000,  # 1,000 optional properties have 4,000
        max_lexer_states=_MOST_LEXER_STATES,
        max_grammar_size=_MOST_WRITTEN_SYMBOLS if kind == "grammar" else _MOST_GENERATED_SYMBOLS,
        verbose_errors=False,
    )


def _one_line(error: str) -> str:
    """What an error of llguidance comes to, without the source and the state that it quotes."""
    if "NoExtension" in error:
        return "nothing can match it"
    if error.startswith("panic"):
        return "it is too large or uses what llguidance does not support"
    regex_error = re.search(r"^error: (.+)$", error, re.MULTILINE)
    text = regex_error.group(1) if regex_error else error.strip().split("\n", 1)[0]
    text = re.sub(r"^(at )?(\d+)\(\d+\): ", "", text)
    return text if len(text) <= _MOST_ERROR_CHARACTERS else text[: _MOST_ERROR_CHARACTERS - 1] + "…"


def _quoted(text: str) -> str:
    """A string of a Lark grammar."""
    return json.dumps(text)


def _inline_json(schema: Mapping[str, Any]) -> str:
    """A schema within a Lark grammar; what it refers to by "#" is itself."""
    return "%json " + json.dumps({**_with_number_bounds(schema), "x-guidance": _JSON_OPTIONS})


def _with_number_bounds(node: Any) -> Any:
    """The schema with numbers of bounded length where it leaves them open: a small model goes on with digits for ever.

    They reach to 10**15 either way, and have up to 6 digits behind the point.
    """
    if isinstance(node, list):
        return [_with_number_bounds(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    bounded = {key: _bounded_part(key, value) for key, value in node.items()}
    types = node.get("type")
    names = types if isinstance(types, list) else [types]
    if (
        "enum" in node
        or "const" in node
        or not {"integer", "number"} & {name for name in names if isinstance(name, str)}
    ):
        return bounded
    low = min(-_MOST_NUMBER, _number(node, "maximum"), _number(node, "exclusiveMaximum"))
    high = max(_MOST_NUMBER, _number(node, "minimum"), _number(node, "exclusiveMinimum"))
    if not {"minimum", "exclusiveMinimum"} & node.keys():
        bounded["minimum"] = low
    if not {"maximum", "exclusiveMaximum"} & node.keys():
        bounded["maximum"] = high
    least = max(_number(node, "minimum", low), _number(node, "exclusiveMinimum", low))
    room = min(_number(node, "maximum", high), _number(node, "exclusiveMaximum", high)) - least
    if "number" in names and "multipleOf" not in node and room > 100 * _NUMBER_STEP:
        bounded["multipleOf"] = _NUMBER_STEP
    return bounded


def _bounded_part(key: str, value: Any) -> Any:
    """One keyword's value with bounds: data stays as it is, and names of properties are no keywords."""
    if key in _DATA_KEYWORDS:
        return value
    if key in _NAME_KEYWORDS and isinstance(value, Mapping):
        return {name: _with_number_bounds(schema) for name, schema in value.items()}
    return _with_number_bounds(value)


def _number(node: Mapping[str, Any], key: str, missing: float = 0) -> float:
    """A bound; one that is no number counts as missing, and is left to llguidance to refuse."""
    value = node.get(key, missing)
    return value if isinstance(value, int | float) else missing


def _check_bytes(text: str, what: str, most_bytes: int) -> int:
    """Bytes of a text in UTF-8, which must not be too many."""
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise ConstraintError(
            f"{what} has half a surrogate pair at character {error.start}; give valid text"
        ) from error
    if num_bytes > most_bytes:
        raise ConstraintError(f"{what} has {num_bytes:,} bytes; allowed are {most_bytes:,}")
    return num_bytes


def _checked_schema(schema: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """The schema, if it is within the limits and refers only to itself."""
    if not isinstance(schema, Mapping):
        raise ConstraintError(f"{what} is {schema!r:.80}; a JSON object is needed")
    num_properties = _num_properties(schema, what)
    if num_properties > MAX_SCHEMA_PROPERTIES:
        raise ConstraintError(f"{what} has {num_properties:,} properties; allowed are {MAX_SCHEMA_PROPERTIES:,}")
    _check_bytes(_json_text(schema, what), what, MAX_SCHEMA_BYTES)
    return schema


def _json_text(schema: Mapping[str, Any], what: str) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConstraintError(f"{what} is not JSON: {error}") from error


def _num_properties(schema: Mapping[str, Any], what: str) -> int:
    """Properties named anywhere in a schema; refuses what is nested too deeply and references to other documents."""
    num_properties = 0
    for depth, node in _containers(schema):
        if depth > MAX_SCHEMA_DEPTH:
            raise ConstraintError(
                f"{what} nests objects and arrays more than {MAX_SCHEMA_DEPTH} deep; that is the most"
            )
        if isinstance(node, Mapping):
            properties = node.get("properties")
            num_properties += len(properties) if isinstance(properties, Mapping) else 0
            _check_reference(node.get("$ref"), what)
    return num_properties


def _containers(schema: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    """Every object and array of a schema with its depth, from 1; without recursion, for depth is not yet checked."""
    waiting: list[tuple[int, Any]] = [(1, schema)]
    while waiting:
        depth, node = waiting.pop()
        yield depth, node
        children = node.values() if isinstance(node, Mapping) else node
        waiting += [(depth + 1, child) for child in children if isinstance(child, Mapping | list | tuple)]


def _check_reference(reference: object, what: str) -> None:
    if isinstance(reference, str) and not reference.startswith("#"):
        raise ConstraintError(f'{what} refers to {reference!r:.80}; only references within it ("#/...") are allowed')


def _check_tools(tools: Sequence[ToolSpec]) -> None:
    if not 1 <= len(tools) <= MAX_TOOLS:
        raise ConstraintError(f"{len(tools)} tools were given; allowed are 1 to {MAX_TOOLS}")
    name, count = Counter(tool.name for tool in tools).most_common(1)[0]
    if count > 1:
        raise ConstraintError(f"{count} tools are named {name!r}; names must differ")
    schemas = [(_tool_label(tool), _checked_schema(tool.parameters, _tool_label(tool))) for tool in tools]
    num_bytes = sum(len(_json_text(schema, what).encode()) for what, schema in schemas)
    if num_bytes > MAX_TOOLS_BYTES:
        raise ConstraintError(
            f"the tools' parameters have {num_bytes:,} bytes together; allowed are {MAX_TOOLS_BYTES:,}"
        )
    num_properties = sum(_num_properties(schema, what) for what, schema in schemas)
    if num_properties > MAX_TOOLS_PROPERTIES:
        raise ConstraintError(
            f"the tools' parameters have {num_properties:,} properties together; allowed are {MAX_TOOLS_PROPERTIES:,}"
        )


def _tool_label(tool: ToolSpec) -> str:
    return f"the parameters of tool {tool.name!r:.80}"


def _tool_rule(index: int, tool: ToolSpec) -> str:
    """The rule of one tool's call, between the begin and the end that all share."""
    kind = tool.parameters.get("type", "object")
    if kind != "object":
        raise ConstraintError(f'{_tool_label(tool)} have the type {kind!r:.80}; it must be "object"')
    head = _quoted(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
    return f"tool_{index}: {head} {_inline_json({'type': 'object', **tool.parameters})} {_quoted('}')}"
