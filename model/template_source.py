"""The text of a Jinja template, taken apart as far as needed to say in minijinja's words what transformers allows.

Separate from the environment because it deals with source text only, and runs once for each template.
"""

import re
from collections.abc import Callable, Iterator, Sequence

OPENING = re.compile(r"\{\{|\{%|\{#")
RAW = re.compile(r"\{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\}", re.DOTALL)
TOKEN = re.compile(
    r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[A-Za-z_]\w*|\d[\w.]*|\s+|[-+]?%\}|-?\}\}|==|!=|.""", re.DOTALL
)
CLOSING = {"{{": ("}}", "-}}"), "{%": ("%}", "-%}", "+%}")}
BRACKETS = {"(": ")", "[": "]", "{": "}"}
STATEMENTS = {"generation": "if true", "endgeneration": "endif"}  # which only mark what a model learnt to write
KEYWORDS = frozenset(
    ("in", "not", "and", "or", "if", "else", "elif", "is", "set", "for", "do", "call", "filter", "with")
)
# fmt: off
METHODS = frozenset((
    "rsplit", "partition", "rpartition", "index", "rindex", "removeprefix", "removesuffix", "swapcase", "casefold",
    "isdecimal", "istitle", "isidentifier", "expandtabs", "center", "ljust", "rjust", "zfill",
))
INSPECTING = METHODS | {
    "split", "startswith", "endswith", "replace", "strip", "lstrip", "rstrip", "trim", "find", "rfind", "count", "eq",
    "equalto", "ne",
}
# fmt: on
METHOD_FILTER = "_method"  # the filter that calls them

Rewrite = Callable[[list[str]], list[str]]


def adapted(source: str) -> str:
    """A template with the constructs of transformers that minijinja lacks, in those that it has."""
    return _rewritten(source, lambda tokens: _with_methods(_without_argument_names(_with_statements(tokens))))


def with_tests_of(source: str, hide: Callable[[str], str]) -> str:
    """A template that looks for what `hide` makes of the marks it looks for, as in `'</think>' in content`."""
    return _rewritten(source, lambda tokens: _with_hidden_tests(tokens, hide))


def names_behind(source: str, mark: str) -> set[str]:
    """The names that follow a mark in a template's code: `|` for filters, `is` for tests."""
    return {word for before, word, _ in _neighbours(source) if before == mark and word.isidentifier()}


def called_names(source: str, *, of_values: bool) -> set[str]:
    """The names that a template calls: methods of values, or functions."""
    return {
        word
        for before, word, behind in _neighbours(source)
        if behind == "(" and word.isidentifier() and word not in KEYWORDS
        if (before == "." if of_values else before not in (".", "|", "is"))
    }


def _neighbours(source: str) -> list[tuple[str, str, str]]:
    """Every token of a template's code between its neighbours; `is not` counts as `is`."""
    found: list[tuple[str, str, str]] = []

    def look(tokens: list[str]) -> list[str]:
        words = ["", *(token for token in tokens if not token.isspace()), ""]
        words = [word for at, word in enumerate(words) if word != "not" or words[at - 1] != "is"]
        found.extend(zip(words, words[1:], words[2:], strict=False))
        return tokens

    _rewritten(source, look)
    return found


def _rewritten(source: str, rewrite: Rewrite) -> str:
    """A template with the code between its delimiters rewritten; text, comments and raw blocks stay."""
    done, at = [], 0
    while (opening := OPENING.search(source, at)) is not None:
        done.append(source[at : opening.start()])
        raw = RAW.match(source, opening.start())
        if raw is not None or opening.group() == "{#":
            end = raw.end() if raw is not None else source.find("#}", opening.end()) + 2
            end = end if end > opening.end() else len(source)
            done.append(source[opening.start() : end])
        else:
            tokens = list(_code(source, opening.end(), opening.group()))
            end = opening.end() + sum(map(len, tokens))
            done += [opening.group(), *rewrite(tokens)]
        at = end
    return "".join([*done, source[at:]])


def _code(source: str, start: int, opening: str) -> Iterator[str]:
    """The tokens of code up to its closing delimiter; braces of mappings do not close it."""
    depth = 0
    while start < len(source):
        found = TOKEN.match(source, start)
        assert found is not None, "the last alternative takes any character"
        part = found.group()
        if part in CLOSING[opening] and (depth == 0 or opening == "{%"):
            return
        if depth and part in CLOSING["{{"]:  # a mapping within a mapping, or a minus behind one
            part = part[0]
        depth += {"{": 1, "}": -1}.get(part, 0)
        yield part
        start += len(part)


def _is_name(token: str) -> bool:
    return token.isidentifier()


def _with_statements(tokens: list[str]) -> list[str]:
    words = [part for part in tokens if not part.isspace() and part not in "-+"]
    if len(words) != 1 or words[0] not in STATEMENTS:
        return tokens
    return [STATEMENTS.get(part, part) for part in tokens]


def _without_argument_names(tokens: list[str]) -> list[str]:
    """`default(x, boolean=true)` by position, as minijinja has it."""
    return list(
        re.sub(r"(?<=\0)(?:boolean|default_value)\0(?:\s+\0)?=\0(?!=)", "", "\0".join(["", *tokens])).split("\0")[1:]
    )


def _with_methods(tokens: list[str]) -> list[str]:
    """Calls of string methods that minijinja lacks, as calls of a filter."""
    at = 0
    while at + 2 < len(tokens):
        name, is_call = tokens[at + 1], tokens[at] == "." and tokens[at + 2] == "("
        if is_call and _takes_method(tokens, at):
            start, end = _chain_start(tokens, at), _closing(tokens, at + 2)
            arguments = tokens[at + 3 : end]
            separator = [", "] if "".join(arguments).strip() else []
            call = ["|", METHOD_FILTER, "(", f"'{name}'", *separator, *arguments, ")"]
            tokens = [*tokens[:start], "(", *tokens[start:at], *call, ")", *tokens[end + 1 :]]
        at += 1
    return tokens


def _takes_method(tokens: Sequence[str], at: int) -> bool:
    if tokens[at + 1] in METHODS:
        return True
    return tokens[at + 1] == "split" and "maxsplit" in tokens[at + 3 : _closing(tokens, at + 2)]


def _closing(tokens: Sequence[str], start: int) -> int:
    """The index of the bracket that closes the one at `start`."""
    depth = 0
    for at in range(start, len(tokens)):
        depth += (tokens[at] in BRACKETS) - (tokens[at] in BRACKETS.values())
        if depth == 0:
            return at
    return len(tokens)


def _chain_start(tokens: Sequence[str], end: int) -> int:
    """The index at which the expression in front of a method begins: `a.b[0].c()` is one."""
    at = end - 1
    while at >= 0:
        while at > 0 and tokens[at].isspace():
            at -= 1
        if tokens[at] in BRACKETS.values():
            depth = 1
            while at > 0 and depth:
                at -= 1
                depth += (tokens[at] in BRACKETS.values()) - (tokens[at] in BRACKETS)
            before = tokens[at - 1] if at else ""
            if (_is_name(before) and before not in KEYWORDS) or before in (")", "]") or before[:1] in ("'", '"'):
                at -= 1
                continue
        if at > 1 and tokens[at - 1] == ".":
            at -= 2
            continue
        return at
    return 0


def _with_hidden_tests(tokens: list[str], hide: Callable[[str], str]) -> list[str]:
    """Texts that are compared, or looked for, or given to methods that look for them."""
    hidden = list(tokens)
    words = [at for at, token in enumerate(tokens) if not token.isspace()]
    for place, at in enumerate(words):
        before = tokens[words[place - 1]] if place else ""
        after = [tokens[other] for other in words[place + 1 : place + 3]]
        if tokens[at][0] in "'\"" and (
            before in ("==", "!=", "in") or after[:1] in (["=="], ["!="], ["in"]) or after == ["not", "in"]
        ):
            hidden[at] = hide(tokens[at])
        is_call = tokens[at] in INSPECTING and after[:1] == ["("]
        opens_list = tokens[at] == "in" and after[:1] in (["["], ["("])
        if is_call or opens_list:
            start = words[place + 1]
            for inner in range(start, min(_closing(tokens, start) + 1, len(tokens))):
                if tokens[inner][0] in "'\"":
                    hidden[inner] = hide(tokens[inner])
    return hidden
