"""A schema and a text as they stand in a Lark grammar."""

import json
from collections.abc import Mapping
from typing import Any

# A request may name these in its own "x-guidance"; ours replace them. White space is fixed, so that a small model
# cannot go on with spaces for ever.
_JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def inline_json(schema: Mapping[str, Any]) -> str:
    """A schema within a Lark grammar; what it refers to by "#" is itself."""
    return "%json " + json.dumps({**schema, "x-guidance": _JSON_OPTIONS})


def quoted(text: str) -> str:
    """A string of a Lark grammar."""
    return json.dumps(text)
