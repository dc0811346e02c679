"""ConstraintError, and llguidance's errors in one line: apart from the modules that raise it, which use each other."""

import re

_MOST_ERROR_CHARACTERS = 200


class ConstraintError(ValueError):
    """A constraint that cannot be compiled or is too large, or an answer that left it; the message is one line."""


def one_line(error: str) -> str:
    """An error of llguidance in one line, without the source and the state that it quotes."""
    if "NoExtension" in error:
        return "nothing can match it"
    if error.startswith("panic"):
        return "it is too large or uses what llguidance does not support"
    regex_error = re.search(r"^error: (.+)$", error, re.MULTILINE)
    text = regex_error.group(1) if regex_error else error.strip().split("\n", 1)[0]
    text = re.sub(r"^(at )?(\d+)\(\d+\): ", "", text)
    return text if len(text) <= _MOST_ERROR_CHARACTERS else text[: _MOST_ERROR_CHARACTERS - 1] + "…"
