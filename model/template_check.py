"""A chat template tried out at export: whether it works, and what conversations it will not take.

Separate from serving, which meets the same refusals one request at a time. Refusing system messages or tools is a
template's right; refusing everything is a fault of the file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import minijinja

from model.chat import ChatTemplate, ChatTemplateError
from model.template_environment import environment_of
from model.template_source import METHODS, called_names, names_behind
from model.tool_messages import PROBE_MESSAGES, PROBE_TOOLS, ToolsAsText

QUESTION = {"role": "user", "content": "First question"}
ANSWER = {"role": "assistant", "content": "First answer"}
AGAIN = {"role": "user", "content": "Second question"}
SYSTEM = {"role": "system", "content": "An instruction"}
BASIC: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "a single question": (QUESTION,),
    "a second question": (QUESTION, ANSWER, AGAIN),
    "a system message": (SYSTEM, QUESTION, ANSWER, AGAIN),
}
# fmt: off
KNOWN_METHODS = METHODS | {
    "append", "capitalize", "changed", "count", "cycle", "endswith", "find", "format", "get", "isalnum", "isalpha",
    "isascii", "isdigit", "islower", "isnumeric", "isspace", "isupper", "items", "join", "keys", "lower", "lstrip",
    "replace", "rfind", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper", "values",
}
KNOWN_FUNCTIONS = {
    "caller", "dict", "joiner", "cycler", "loop", "namespace", "raise_exception", "range", "strftime_now", "super",
}
# fmt: on


def template_findings(source: str | None, special_tokens: Mapping[str, str]) -> list[str]:
    """Findings about a chat template for whoever exports it, one line each; nothing of one that takes everything.

    Raises:
        ChatTemplateError: the template does not compile, refuses every conversation, or shows nothing of them.
    """
    if source is None:
        return ["the model has no chat template: /v1/chat/completions and /v1/responses will refuse every request"]
    try:
        template = ChatTemplate(source, special_tokens)
    except ChatTemplateError as error:
        raise _useless(error) from error
    return [*_unknown_names(source), *_refusals(template), *_tool_findings(template)]


def _refusals(template: ChatTemplate) -> list[str]:
    findings, refusals = [], []
    shows_users = False
    for name, messages in BASIC.items():
        try:
            text = template.render(messages)
        except ChatTemplateError as error:
            refusals.append(error)
            findings.append(f"{error} (tried: {name}); such requests will be answered 400")
            continue
        shows_users = shows_users or any(
            message["role"] == "user" and message["content"].lower() in text.lower() for message in messages
        )
        unseen = [message["role"] for message in messages if message["content"] not in text]
        if unseen:
            findings.append(f"the chat template leaves out what the {unseen[0]} says (tried: {name})")
    if len(refusals) == len(BASIC):
        raise _useless(refusals[0])
    if not shows_users:
        raise _useless("the chat template shows nothing of what users say")
    return findings


def _tool_findings(template: ChatTemplate) -> list[str]:
    form = template.tool_forms[0]
    try:
        template.render(PROBE_MESSAGES, tools=PROBE_TOOLS)
    except ChatTemplateError as error:
        return [f"{error} (tried: a call of a tool and its result); such requests will be answered 400"]
    if not isinstance(form, ToolsAsText):
        return []
    place = "the system message" if form.has_system else "the first user message"
    return [f"the chat template has no form for tools: {place} will describe them, and results are a user's turns"]


def _unknown_names(source: str) -> list[str]:
    """Constructs that Attend's engine lacks. They may never be reached, so they are named, not refused."""
    environment = environment_of(source)
    undeclared = environment.undeclared_variables_in_template("chat")
    unknown = {
        "method": called_names(source, of_values=True) - KNOWN_METHODS,
        "function": (called_names(source, of_values=False) & undeclared) - KNOWN_FUNCTIONS,
        "filter": {name for name in names_behind(source, "|") if _is_unknown(environment, f"'' | {name}")},
        "test": {name for name in names_behind(source, "is") if _is_unknown(environment, f"'' is {name}")},
    }
    return [
        f"the chat template uses the {kind} {name!r}, which Attend lacks; a conversation that needs it will be refused"
        for kind, names in unknown.items()
        for name in sorted(names)
    ]


def _is_unknown(environment: minijinja.Environment, expression: str) -> bool:
    try:
        environment.eval_expr(expression)
    except minijinja.TemplateError as error:
        return error.kind in ("UnknownFilter", "UnknownTest")
    except Exception:  # noqa: BLE001 - a filter of ours that refuses this value is known
        return False
    return False


def _useless(error: ChatTemplateError | str) -> ChatTemplateError:
    return ChatTemplateError(f"{error}; mend the template, or take it out of the checkpoint to serve without chat")
