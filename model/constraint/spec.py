"""ConstraintSpec: what an answer must look like, as a grammar. A caller makes one, has it compiled, and walks through.

A JSON schema, a regular expression, a choice, a grammar, or calls of tools. Making a spec compiles nothing, but it
checks every limit and puts schemas in a form that is enforced exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llguidance import regex_to_lark

from model.constraint.errors import ConstraintError
from model.constraint.inline_json import inline_json, quoted
from model.constraint.keys import KeyRules
from model.constraint.keywords import Schema
from model.constraint.limits import (
    MAX_CHOICES,
    MAX_CHOICES_BYTES,
    MAX_GRAMMAR_BYTES,
    MAX_REGEX_BYTES,
    check_bytes,
    check_schema,
)
from model.constraint.objects import SchemaRules
from model.constraint.patterns import ascii_grammar, ascii_pattern
from model.constraint.schema import PreparedSchema, prepared_schema
from model.constraint.tool_rules import ToolSpec, prepared_tools, tools_grammar

_SCHEMA = "the schema"
_BY_DEFAULT = SchemaRules()


@dataclass(frozen=True)
class ConstraintSpec:
    """A form that an answer must have; made by the class methods.

    kind: for messages. lark: the whole of it as a grammar for llguidance. keys: what the grammar cannot see to.
    schemas: those in the grammar, each with its label, so that an error can name a property.
    """

    kind: str
    lark: str
    keys: KeyRules | None = None
    schemas: tuple[tuple[str, Schema], ...] = field(default=(), compare=False, repr=False)

    @property
    def key(self) -> tuple[str, str]:
        """Equal for specs that allow the same answers in the same way."""
        return self.kind, self.lark

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any], rules: SchemaRules = _BY_DEFAULT) -> "ConstraintSpec":
        """JSON that follows a schema (draft 2020-12), compact: ", " and ": " and no other white space.

        Properties come in the order of the schema.

        Raises:
            ConstraintError: the schema is too large, refers to another document, or says what cannot be enforced.
        """
        check_schema(schema, _SCHEMA)
        return cls._of_json("json_schema", prepared_schema(schema, _SCHEMA, rules))

    @classmethod
    def json_object(cls) -> "ConstraintSpec":
        """Any JSON object, compact."""
        return cls._of_json("json_object", prepared_schema({"type": "object"}, _SCHEMA, _BY_DEFAULT))

    @classmethod
    def _of_json(cls, kind: str, prepared: PreparedSchema) -> "ConstraintSpec":
        most_keys = prepared.most_keys
        keys = None if most_keys is None else KeyRules(most_keys, in_answer=True, in_calls=False)
        return cls(kind, f"start: {inline_json(prepared.schema)}", keys, ((_SCHEMA, prepared.schema),))

    @classmethod
    def regex(cls, pattern: str) -> "ConstraintSpec":
        r"""Text that a regular expression matches as a whole, in the syntax of Rust's `regex` crate.

        `\d`, `\w` and `\s` are ASCII unless the pattern asks for `(?u)`; there is no looking around and no reference
        back.

        Raises:
            ConstraintError: the pattern is too long, looks around or refers back.
        """
        check_bytes(pattern, "the regex", MAX_REGEX_BYTES)
        return cls("regex", f"start: /{regex_to_lark(ascii_pattern(pattern))}/")

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
        check_bytes("".join(options), "the choices together", MAX_CHOICES_BYTES)
        return cls("choice", "start: CHOICE\nCHOICE: " + " | ".join(map(quoted, options)))

    @classmethod
    def grammar(cls, lark: str) -> "ConstraintSpec":
        r"""Text of a context-free grammar in llguidance's variant of Lark; it begins with the rule `start`.

        In its regexes `\d`, `\w` and `\s` are ASCII unless they ask for `(?u)`.

        Raises:
            ConstraintError: the grammar is too long, or a regex looks around or refers back.
        """
        check_bytes(lark, "the grammar", MAX_GRAMMAR_BYTES)
        return cls("grammar", ascii_grammar(lark))

    @classmethod
    def tools(
        cls,
        tools: Sequence[ToolSpec],
        *,
        is_required: bool,
        allows_many: bool,
        opens_objects: bool = False,
        answer: Mapping[str, Any] | None = None,
        answer_rules: SchemaRules = _BY_DEFAULT,
    ) -> "ConstraintSpec":
        r"""Calls of tools, each `<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>`.

        is_required: the answer is one call; otherwise it is free text, a call, or free text and then a call. Free text
        may end anywhere, but `<tool_call>` in it begins a call. answer: a schema that takes the place of free text:
        the answer is calls, or JSON that follows it. allows_many: up to MAX_CALLS in all, each after a newline.
        opens_objects: of the tools' parameters, as SchemaRules has it.

        Raises:
            ConstraintError: too many tools, two with one name, or parameters that are too large, not an object's, or
                say what cannot be enforced.
        """
        schemas = prepared_tools(tools, opens_objects=opens_objects)
        other: PreparedSchema | None = None
        if answer is not None and not is_required:
            check_schema(answer, _SCHEMA)
            other = prepared_schema(answer, _SCHEMA, answer_rules)
        lark = tools_grammar(
            {tool.name: prepared.schema for tool, (_, prepared) in zip(tools, schemas, strict=True)},
            is_required=is_required,
            allows_many=allows_many,
            answer=None if other is None else other.schema,
        )
        labelled = [*schemas, *([(_SCHEMA, other)] if other is not None else [])]
        open_ones = [prepared.most_keys for _, prepared in labelled if prepared.most_keys is not None]
        keys = KeyRules(max(open_ones), in_answer=other is not None, in_calls=True) if open_ones else None
        return cls("tools", lark, keys, tuple((label, prepared.schema) for label, prepared in labelled))
