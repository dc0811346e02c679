r"""Regular expressions as their authors mean them: `\d`, `\w` and `\s` are ASCII, and what cannot be done has a name.

Separate because three places have them: JSON schemas (`pattern`, `patternProperties`), `guided_regex` and the regexes
of a grammar. The engine below, Rust's `regex`, reads `\d` as every digit of Unicode, and a model then writes them.
"""

import re
from collections.abc import Mapping

from model.constraint.errors import UnenforceablePatternError

# A request asks for Unicode's classes with Rust's own flag, in front of the pattern or of a group: (?u) or (?u:…).
_ASKS_FOR_UNICODE = re.compile(r"\(\?[a-tv-zA-Z]*u[a-zA-Z]*(-[a-zA-Z]*)?[:)]")
_ASCII_SETS = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\n\r\f\v"}
_UNICODE_SETS = {
    "d": r"\p{Nd}",
    "w": r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}",
    "s": r"\p{White_Space}",
}
_LOOK_AROUNDS = ("(?=", "(?!", "(?<=", "(?<!")
# Patterns that libraries write into many schemas, and the same texts without look-around. zod 4's email.
_REWRITTEN = {
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": (
        r"^([A-Za-z0-9_'+\-]+\.)*[A-Za-z0-9_'+\-]*[A-Za-z0-9_+\-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
    ),
}
# A Lark text's parts in which slashes are no regex: strings, comments; then the regexes themselves.
_LARK_PARTS = re.compile(
    r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/(?P<regex>(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+)/(?P<flags>[imslux]*)'
)


def ascii_pattern(pattern: str) -> str:
    r"""A regular expression whose `\d`, `\w`, `\s` and their negations mean ASCII, unless it asks for `(?u)`.

    Raises:
        UnenforceablePatternError: it looks around or refers back, which no constraint can.
    """
    _check_supported(pattern)
    sets = _UNICODE_SETS if _ASKS_FOR_UNICODE.search(pattern) else _ASCII_SETS
    return "".join(_spelt_out(text, sets, is_in_class) for text, is_in_class in _pieces(pattern))


def schema_pattern(pattern: str) -> str:
    r"""The same for the patterns of JSON schemas, which are ECMA's: `[` stands for itself inside a class.

    Raises:
        UnenforceablePatternError: as above.
    """
    pattern = _REWRITTEN.get(pattern, pattern)
    pieces = [
        (rf"\{text}" if is_in_class and text in "[&~" else text, is_in_class) for text, is_in_class in _pieces(pattern)
    ]
    return ascii_pattern("".join(text for text, _ in pieces))


def ascii_grammar(lark: str) -> str:
    r"""A Lark grammar whose regexes are ASCII; `/…/u` and `(?u)` ask for Unicode.

    Raises:
        UnenforceablePatternError: a regex looks around or refers back.
    """

    def replaced(match: re.Match[str]) -> str:
        regex, flags = match["regex"], match["flags"]
        if regex is None or "u" in flags:
            return match[0]
        return f"/{ascii_pattern(regex)}/{flags}"

    return _LARK_PARTS.sub(replaced, lark)


def _pieces(pattern: str) -> list[tuple[str, bool]]:
    """The pattern's characters and escapes, each with whether it stands inside a class; its brackets do not."""
    pieces: list[tuple[str, bool]] = []
    depth, position, class_began = 0, 0, -1
    while position < len(pattern):
        text = pattern[position : position + 2] if pattern[position] == "\\" else pattern[position]
        is_inside = depth > 0
        if text == "[" and not depth:
            depth, class_began, is_inside = 1, position + 1, False
        elif text == "[" and pattern.startswith("[:", position):
            text = pattern[position : pattern.find(":]", position) + 2] if ":]" in pattern[position:] else text
        elif text == "^" and position == class_began:
            class_began, is_inside = position + 1, False
        elif text == "]" and depth and position > class_began:
            depth, is_inside = depth - 1, False
        pieces.append((text, is_inside))
        position += len(text)
    return pieces


def _spelt_out(text: str, sets: Mapping[str, str], is_in_class: bool) -> str:
    """One piece: a class by its letter becomes one of these sets, everything else stays."""
    if len(text) != 2 or text[0] != "\\" or text[1].lower() not in sets:
        return text
    characters = sets[text[1].lower()]
    if text[1].isupper():
        return f"[^{characters}]"  # inside a class it is a class in a class
    return characters if is_in_class else f"[{characters}]"


def _check_supported(pattern: str) -> None:
    """Refuse what no automaton can do, by its name."""
    outside = [text for text, is_in_class in _pieces(pattern) if not is_in_class]
    plain = "".join(text if len(text) == 1 else "  " for text in outside)
    problem = next((f"look-around ({mark}…)" for mark in _LOOK_AROUNDS if mark in plain), None)
    for text in outside:
        if text in (r"\b", r"\B"):
            problem = f"the word boundary {text}, a look-around"
        elif re.fullmatch(r"\\[1-9k]", text):
            problem = f"the back-reference {text}"
    if problem is not None:
        raise UnenforceablePatternError(
            f"the pattern {pattern!r:.80} uses {problem}, which cannot be enforced; write it without"
        )
