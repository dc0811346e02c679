"""Constraints on what an answer may say: a JSON schema, a regular expression, a choice, a grammar, or calls of tools.

A caller describes what it wants (`ConstraintSpec`), has it compiled once (`ConstraintCompiler`), and walks one answer
through it (`Constraint`). Only this package knows llguidance.
"""

from model.constraint.compiler import ConstraintCompiler
from model.constraint.errors import ConstraintError
from model.constraint.limits import (
    MAX_CALLS,
    MAX_CHOICES,
    MAX_GRAMMAR_BYTES,
    MAX_REGEX_BYTES,
    MAX_SCHEMA_PROPERTIES,
    MAX_TOOLS,
)
from model.constraint.matcher import Constraint
from model.constraint.objects import SchemaRules
from model.constraint.spec import ConstraintSpec
from model.constraint.tool_rules import ToolSpec
from model.constraint.tool_syntax import TOOL_CALL_BEGIN, TOOL_CALL_END

__all__ = [
    "MAX_CALLS",
    "MAX_CHOICES",
    "MAX_GRAMMAR_BYTES",
    "MAX_REGEX_BYTES",
    "MAX_SCHEMA_PROPERTIES",
    "MAX_TOOLS",
    "TOOL_CALL_BEGIN",
    "TOOL_CALL_END",
    "Constraint",
    "ConstraintCompiler",
    "ConstraintError",
    "ConstraintSpec",
    "SchemaRules",
    "ToolSpec",
]
