"""The grammar of calls: what a model writes to call tools, and what it may write instead.

Separate from the spec because calls have a syntax of their own around the JSON.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.constraint.errors import ConstraintError
from model.constraint.inline_json import inline_json, quoted
from model.constraint.keywords import Schema, constraining
from model.constraint.limits import MAX_CALLS, MAX_TOOLS, MAX_TOOLS_BYTES, MAX_TOOLS_PROPERTIES, check_schema
from model.constraint.objects import SchemaRules
from model.constraint.place import Place
from model.constraint.schema import PreparedSchema, prepared_schema
from model.constraint.tool_syntax import TOOL_CALL_BEGIN, TOOL_CALL_END

# Free text, and free text up to where a call begins: lazy, so that the first `<tool_call>` ends it.
_TEXT_RULES = r"""TEXT: /(.|\n)*/
text_head[lazy]: /(.|\n)*<tool_call>/
text_begin: text_head "\n"
"""


@dataclass(frozen=True)
class ToolSpec:
    """One tool that may be called. parameters: the JSON schema of its arguments, which are an object.

    is_strict: its objects are closed whatever the service's setting says.
    """

    name: str
    parameters: Mapping[str, Any]
    is_strict: bool = False


def prepared_tools(tools: Sequence[ToolSpec], *, opens_objects: bool) -> list[tuple[str, PreparedSchema]]:
    """The parameters of each tool, and what to call them in a message.

    Raises:
        ConstraintError: too many tools, two of one name, or parameters that cannot be enforced.
    """
    if not 1 <= len(tools) <= MAX_TOOLS:
        raise ConstraintError(f"{len(tools)} tools were given; allowed are 1 to {MAX_TOOLS}")
    name, count = Counter(tool.name for tool in tools).most_common(1)[0]
    if count > 1:
        raise ConstraintError(f"{count} tools are named {name!r}; names must differ")
    sizes = [check_schema(tool.parameters, _label(tool)) for tool in tools]
    num_bytes, num_properties = (sum(size) for size in zip(*sizes, strict=True))
    if num_bytes > MAX_TOOLS_BYTES:
        raise ConstraintError(
            f"the tools' parameters have {num_bytes:,} bytes together; allowed are {MAX_TOOLS_BYTES:,}"
        )
    if num_properties > MAX_TOOLS_PROPERTIES:
        raise ConstraintError(
            f"the tools' parameters have {num_properties:,} properties together; allowed are {MAX_TOOLS_PROPERTIES:,}"
        )
    return [(_label(tool), _prepared(index, tool, opens_objects)) for index, tool in enumerate(tools)]


def tools_grammar(
    parameters: Mapping[str, Schema], *, is_required: bool, allows_many: bool, answer: Schema | None
) -> str:
    """The grammar of an answer with tools. parameters: the schema of each tool's arguments, by name."""
    more = f"({quoted(chr(10) + TOOL_CALL_BEGIN)} call_body){{0,{MAX_CALLS - 1}}}" if allows_many else ""
    calls = f"begin call_body {more}"
    rules = [f"begin: {quoted(TOOL_CALL_BEGIN)}"]
    if is_required:
        rules.insert(0, f"start: {calls}")
    elif answer is not None:
        rules.insert(0, f"start: answer | {calls}")
        rules.append(f"answer: {inline_json(answer)}")
    else:
        rules.insert(0, f"start: TEXT | text_begin call_body {more}")
        rules.append(_TEXT_RULES)
    rules.append(f"call_body: {inline_json(_any_call(parameters))} {quoted(TOOL_CALL_END)}")
    return "\n".join(rules)


def _any_call(parameters: Mapping[str, Schema]) -> Schema:
    """The JSON of a call, one schema for all tools: what they have in common is compiled once."""
    definitions: Schema = {}
    calls: list[Schema] = []
    for name, schema in parameters.items():
        own = dict(schema)
        definitions |= own.pop("$defs", {})
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": own},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"$defs": definitions, "anyOf": calls}


def _label(tool: ToolSpec) -> str:
    return f"the parameters of tool {tool.name!r:.140}"


def _prepared(index: int, tool: ToolSpec, opens_objects: bool) -> PreparedSchema:
    kind = tool.parameters.get("type") or "object"
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise ConstraintError(f'{_label(tool)} have the type {kind!r:.80}; it must be "object"')
    rules = SchemaRules(opens_objects, tool.is_strict)
    parameters = {**tool.parameters, "type": "object"}
    if not _says_anything(tool):
        parameters["properties"] = {}
    return prepared_schema(parameters, _label(tool), rules, f"t{index}")


def _says_anything(tool: ToolSpec) -> bool:
    """Whether parameters say which arguments there are; `{}` and `{"type": "object"}` are a tool that takes none."""
    kept = constraining(tool.parameters, Place(_label(tool)))
    return bool(kept.keys() - {"type", "required"} or kept.get("required"))
