"""Tools, calls and results as a template can take them: in its own shapes, or as text in roles that it knows.

Separate from the template because templates differ in this only, and each is tried once on a short conversation.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOOLS_INSTRUCTION = (
    "You may call functions to answer. To call one, write\n"
    '<tool_call>\n{{"name": "FUNCTION", "arguments": {{…}}}}\n</tool_call>\n'
    "Its result follows in <tool_response>. The functions, each with the JSON schema of its arguments:\n{tools}"
)
SHORT_ID_CHARACTERS = 9  # Mistral's templates insist on it

Message = dict[str, Any]
Messages = Sequence[Mapping[str, Any]]


def tool_call_text(name: str, arguments: Mapping[str, Any] | str) -> str:
    """How a call reads in the model's text."""
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


@dataclass(frozen=True)
class NativeTools:
    """Tools in the shapes of Hugging Face templates, as far as these agree.

    has_json_arguments: a call's arguments are JSON in a string. has_short_ids: ids of calls have nine letters and
    digits. has_single_calls: a message makes one call, and its result follows.
    """

    has_json_arguments: bool = False
    has_short_ids: bool = False
    has_single_calls: bool = False

    def identified(self, messages: Messages) -> list[Message]:
        """Messages with ids that the template takes."""
        if not self.has_short_ids:
            return [dict(message) for message in messages]
        return [_with_short_ids(message) for message in messages]

    def shaped(self, messages: Messages, tools: Messages) -> tuple[list[Message], list[Message]]:
        """Messages and tools as the template reads them."""
        spoken = [dict(message) for message in messages]
        if self.has_single_calls:
            spoken = _with_single_calls(spoken)
        return [self._with_nested_calls(message) for message in spoken], [
            {"type": "function", "function": dict(tool)} for tool in tools
        ]

    def _with_nested_calls(self, message: Message) -> Message:
        if not message.get("tool_calls"):
            return message
        return {**message, "tool_calls": [self._nested(call) for call in message["tool_calls"]]}

    def _nested(self, call: Mapping[str, Any]) -> Message:
        arguments = call["arguments"]
        if self.has_json_arguments and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        identity = {"id": call["id"]} if "id" in call else {}
        return {"type": "function", **identity, "function": {"name": call["name"], "arguments": arguments}}


@dataclass(frozen=True)
class ToolsAsText:
    """Tools described in a system message; calls and results as text in roles that every template knows.

    has_system: the template takes a system message; otherwise the first user message describes the tools. merges: the
    template insists that user and assistant take turns, so results and what follows are one turn.
    """

    has_system: bool = True
    merges: bool = False

    def identified(self, messages: Messages) -> list[Message]:
        """The messages: ids play no part."""
        return [dict(message) for message in messages]

    def shaped(self, messages: Messages, tools: Messages) -> tuple[list[Message], list[Message]]:
        """Messages as the template reads them, and no tools."""
        plain = [_as_plain_message(message) for message in messages]
        if self.merges:
            plain = _merged(plain, [message["role"] == "tool" for message in messages])
        return (self._with_instruction(plain, tools) if tools else plain), []

    def _with_instruction(self, messages: list[Message], tools: Messages) -> list[Message]:
        listed = "\n".join(json.dumps(dict(tool), ensure_ascii=False) for tool in tools)
        instruction = TOOLS_INSTRUCTION.format(tools=listed)
        if messages[0]["role"] == "system":
            return [{**messages[0], "content": f"{messages[0]['content']}\n\n{instruction}"}, *messages[1:]]
        if self.has_system:
            return [{"role": "system", "content": instruction}, *messages]
        if messages[0]["role"] == "user":
            return [{**messages[0], "content": f"{instruction}\n\n{messages[0]['content']}"}, *messages[1:]]
        return [{"role": "user", "content": instruction}, *messages]


ToolForm = NativeTools | ToolsAsText
NATIVE_FORMS = tuple(
    NativeTools(json_arguments, short_ids, single)
    for single, json_arguments, short_ids in itertools.product((False, True), repeat=3)
)
TEXT_FORMS = (ToolsAsText(), ToolsAsText(merges=True), ToolsAsText(False), ToolsAsText(False, True))
PROBE_TOOLS: Messages = (
    {"name": "look_up", "description": "Finds a fact.", "parameters": {"type": "object", "properties": {}}},
)
PROBE_MESSAGES: Messages = (
    {"role": "user", "content": "Question"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": f"call_{at}0000", "name": "look_up", "arguments": {"word": f"w{at}"}} for at in range(2)],
    },
    {"role": "tool", "tool_call_id": "call_00000", "content": "First result"},
    {"role": "tool", "tool_call_id": "call_10000", "content": "Second result"},
    {"role": "assistant", "content": "Answer"},
    {"role": "user", "content": "Thanks"},
)
PROBE_SHOWN = ("look_up", "First result", "Second result", "Answer", "Thanks")


def usable_forms(
    knows_tools: bool, renders: Callable[[ToolForm, Messages, Messages], str | None]
) -> tuple[ToolForm, ...]:
    """The forms to offer a template, best first: its own if it shows calls, and text for what it refuses in its own.

    knows_tools: whether its source speaks of tools. renders: what it makes of a conversation; None if it refuses.
    """
    native = _first_shown(NATIVE_FORMS if knows_tools else (), renders)
    as_text = _first_shown(TEXT_FORMS, renders)
    found = tuple(form for form in (native, as_text) if form is not None)
    return found or ((NativeTools(),) if knows_tools else (ToolsAsText(),))


def _first_shown(
    forms: Sequence[ToolForm], renders: Callable[[ToolForm, Messages, Messages], str | None]
) -> ToolForm | None:
    for form in forms:
        rendered = renders(form, PROBE_MESSAGES, PROBE_TOOLS)
        if rendered is not None and all(text in rendered for text in PROBE_SHOWN):
            return form
    return None


def _as_plain_message(message: Mapping[str, Any]) -> Message:
    content, calls = message["content"], message.get("tool_calls") or ()
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    lines = [content] if content else []
    lines += [tool_call_text(call["name"], call["arguments"]) for call in calls]
    return {"role": message["role"], "content": "\n".join(lines)}


def _merged(messages: list[Message], are_results: list[bool]) -> list[Message]:
    """Turns of a user in a row as one, where a result is among them; a client's own are left to the template."""
    merged: list[Message] = []
    was_result = False
    for message, is_result in zip(messages, are_results, strict=True):
        if merged and message["role"] == "user" == merged[-1]["role"] and (is_result or was_result):
            merged[-1] = {**merged[-1], "content": f"{merged[-1]['content']}\n{message['content']}"}
        else:
            merged.append(message)
        was_result = is_result
    return merged


def _with_single_calls(messages: list[Message]) -> list[Message]:
    """A message of several calls, and the results behind it, as call and result in turn."""
    spoken: list[Message] = []
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            spoken.append(message)
            continue
        results = [*itertools.takewhile(lambda other: other["role"] == "tool", rest)]
        del rest[: len(results)]
        for at, call in enumerate(calls):
            spoken.append({**message, "content": message["content"] if at == 0 else "", "tool_calls": [call]})
            spoken += [results.pop(found) for found in _result_of(call, results)]
        spoken += results
    return spoken


def _result_of(call: Mapping[str, Any], results: list[Message]) -> list[int]:
    """The place of a call's result: by its id, or else the next one."""
    by_id = [at for at, result in enumerate(results) if result.get("tool_call_id") == call.get("id")]
    return by_id[:1] or [0][: len(results)]


def _with_short_ids(message: Mapping[str, Any]) -> Message:
    changed = dict(message)
    if "tool_call_id" in changed:
        changed["tool_call_id"] = _short_id(changed["tool_call_id"])
    if changed.get("tool_calls"):
        changed["tool_calls"] = [{**call, "id": _short_id(call.get("id", ""))} for call in changed["tool_calls"]]
    return changed


def _short_id(identity: str) -> str:
    """The same nine letters and digits for the same id; one that has that form already stays."""
    if len(identity) == SHORT_ID_CHARACTERS and identity.isalnum():
        return identity
    return hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()[:SHORT_ID_CHARACTERS]
