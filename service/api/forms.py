"""AnswerForm: what a conversation's request says of its answer's form, and the constraint that this comes to.

Separate from the routes because chat completions and responses say the same in different words.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.constraint import ConstraintSpec, SchemaRules, ToolSpec
from service.schemas.chat import Tool

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class AnswerForm:
    """tools: those that may be called. is_call: the answer must call one. is_single: it may call one at most.

    schema: of the answer's JSON, None for free text. is_strict: the schema's objects are closed in any case.
    """

    tools: Sequence[Tool] = ()
    is_call: bool = False
    is_single: bool = False
    schema: Mapping[str, Any] | None = None
    is_strict: bool = False

    async def spec(self, *, opens_objects: bool) -> ConstraintSpec | None:
        """The constraint, None where anything may be said. Large schemas take a while: made off the event loop.

        opens_objects: objects that list their properties may add others, where they do not say.

        Raises:
            ConstraintError: it is too large, or says what cannot be enforced.
        """
        if not self.tools and self.schema is None:
            return None
        return await asyncio.to_thread(self._spec, opens_objects)

    def _spec(self, opens_objects: bool) -> ConstraintSpec:
        rules = SchemaRules(opens_objects, self.is_strict)
        if self.tools:
            return ConstraintSpec.tools(
                [_tool_spec(tool) for tool in self.tools],
                is_required=self.is_call,
                allows_many=not self.is_single,
                opens_objects=opens_objects,
                answer=self.schema,
                answer_rules=rules,
            )
        assert self.schema is not None, "the caller has asked"
        if self.schema is ANY_OBJECT:
            return ConstraintSpec.json_object()
        return ConstraintSpec.json_schema(self.schema, rules)


def _tool_spec(tool: Tool) -> ToolSpec:
    """A function without parameters takes none."""
    parameters = tool.function.parameters
    return ToolSpec(
        tool.function.name, _NO_PARAMETERS if parameters is None else parameters, is_strict=bool(tool.function.strict)
    )
