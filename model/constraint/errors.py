"""The errors of constraints, and llguidance's in one line: apart from the modules that raise them."""

import re

_MOST_ERROR_CHARACTERS = 200
_KNOWN = {
    "NoExtension": "nothing can match it",
    "schema is false": "nothing can match it",
    "oneOf constraints are not supported": '"oneOf" with branches that may overlap cannot be enforced; use anyOf',
}


class ConstraintError(ValueError):
    """A constraint that cannot be compiled or is too large, or an answer that left it; the message is one line."""


class UnsatisfiableError(ConstraintError):
    """A schema that nothing can match; as one of several alternatives it is left out."""


class UnenforceablePatternError(ConstraintError):
    """A pattern that no automaton can do; where other alternatives are enough, the one that has it is left out."""


def one_line(error: str) -> str:
    """An error of llguidance in one line, without the source and the state that it quotes."""
    for mark, message in _KNOWN.items():
        if mark in error:
            return message
    if error.startswith("panic"):
        return "it is too large or uses what llguidance does not support"
    regex_error = re.search(r"^error: (.+)$", error, re.MULTILINE)
    text = regex_error.group(1) if regex_error else error.strip().split("\n", 1)[0]
    text = re.sub(r"^(at )?(\d+)\(\d+\): ", "", text)
    return text if len(text) <= _MOST_ERROR_CHARACTERS else text[: _MOST_ERROR_CHARACTERS - 1] + "…"
