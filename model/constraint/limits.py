"""How large a constraint may be, and the checks of it. Cheap: done before anything is compiled."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from model.constraint.errors import ConstraintError

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


def check_bytes(text: str, subject: str, most_bytes: int) -> int:
    """Bytes of a text in UTF-8, which must not be too many.

    Raises:
        ConstraintError: they are, or the text is no text.
    """
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise ConstraintError(
            f"{subject} has half a surrogate pair at character {error.start}; give valid text"
        ) from error
    if num_bytes > most_bytes:
        raise ConstraintError(f"{subject} has {num_bytes:,} bytes; allowed are {most_bytes:,}")
    return num_bytes


def check_schema(schema: Mapping[str, Any], subject: str) -> tuple[int, int]:
    """Bytes and properties of a schema that is within the limits.

    Raises:
        ConstraintError: it is not.
    """
    if not isinstance(schema, Mapping):
        raise ConstraintError(f"{subject} is {schema!r:.80}; a JSON object is needed")
    num_properties = _num_properties(schema, subject)
    if num_properties > MAX_SCHEMA_PROPERTIES:
        raise ConstraintError(f"{subject} has {num_properties:,} properties; allowed are {MAX_SCHEMA_PROPERTIES:,}")
    return check_bytes(_json_text(schema, subject), subject, MAX_SCHEMA_BYTES), num_properties


def _json_text(schema: Mapping[str, Any], subject: str) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConstraintError(f"{subject} is not JSON: {error}") from error


def _num_properties(schema: Mapping[str, Any], subject: str) -> int:
    """Properties named anywhere in a schema; refuses what is nested too deeply."""
    num_properties = 0
    for depth, node in _containers(schema):
        if depth > MAX_SCHEMA_DEPTH:
            raise ConstraintError(
                f"{subject} nests objects and arrays more than {MAX_SCHEMA_DEPTH} deep; that is the most"
            )
        if isinstance(node, Mapping):
            properties = node.get("properties")
            num_properties += len(properties) if isinstance(properties, Mapping) else 0
    return num_properties


def _containers(schema: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    """Every object and array of a schema with its depth, from 1; without recursion, for depth is not yet checked."""
    waiting: list[tuple[int, Any]] = [(1, schema)]
    while waiting:
        depth, node = waiting.pop()
        yield depth, node
        children = node.values() if isinstance(node, Mapping) else node
        waiting += [(depth + 1, child) for child in children if isinstance(child, Mapping | list | tuple)]
