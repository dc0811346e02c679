"""Chat messages -> prompt text, through the model's own template in a sandbox.

Separate from the API because it is the model that knows how it was taught to chat. Templates come from bundles only,
never from requests; `minijinja` runs them with bounded fuel and without access to Python.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import minijinja

from model.errors import UserError

TOOLS_INSTRUCTION = (
    "You may call functions to answer. To call one, write\n"
    '<tool_call>\n{{"name": "FUNCTION", "arguments": {{…}}}}\n</tool_call>\n'
    "Its result follows in <tool_response>. The functions, each with the JSON schema of its arguments:\n{tools}"
)
CUT_MARK = "<continue from here>"
FUEL = 1_000_000  # template instructions; a 1,000-message conversation takes a few tens of thousands


class ChatTemplateError(UserError, ValueError):
    """The template is broken, or refuses these messages; the message is one line."""


class ChatTemplate:
    """A bundle's chat template, compiled once."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile.

        Raises:
            ChatTemplateError: the source is not a template.
        """
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._knows_tools = re.search(r"\btools\b", source) is not None
        self._environment = minijinja.Environment(
            trim_blocks=True, lstrip_blocks=True, fuel=FUEL, pycompat=True, undefined_behavior="lenient"
        )
        self._environment.add_global("raise_exception", _raise_exception)
        self._environment.add_filter("tojson", _to_json)
        try:
            self._environment.add_template("chat", source)
        except minijinja.TemplateError as error:
            raise ChatTemplateError(f"the chat template does not compile: {error.message}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt for a conversation.

        messages: each with `role` and `content` text; an assistant's may have `tool_calls` of `{"name", "arguments"}`.
        tools: each `{"name", "description", "parameters"}`. A template that knows nothing of tools gets them as text.
        add_generation_prompt: end with the opening of the answer. continue_final_message: end inside the last message.

        Raises:
            ChatTemplateError: the template refuses the conversation, or it exceeds the template's fuel.
        """
        spoken = [dict(message) for message in messages]
        if not self._knows_tools:
            spoken = _with_tools_as_text(spoken, tools)
        if not continue_final_message:
            return self._render(spoken, tools, add_generation_prompt)
        text = spoken[-1]["content"].rstrip()
        spoken[-1] = {**spoken[-1], "content": text + CUT_MARK}
        return _cut_behind(self._render(spoken, tools, add_generation_prompt=False), text)

    def _render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]], add_generation_prompt: bool
    ) -> str:
        try:
            values = {
                **self._special_tokens,
                "messages": [_with_nested_calls(message) for message in messages],
                "add_generation_prompt": add_generation_prompt,
                # none where there are none, as transformers does: templates ask
                "tools": [{"type": "function", "function": dict(tool)} for tool in tools] or None,
                "documents": None,
            }
            return self._environment.render_template("chat", **values)
        except Exception as error:  # whatever the template did: a call may raise any type
            message = error.message if isinstance(error, minijinja.TemplateError) else str(error)
            line = " ".join(message.split())
            raise ChatTemplateError(f"the model's chat template refuses these messages: {line}") from error


def tool_call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """How a call reads in the model's text."""
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def _with_tools_as_text(messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools described in the system message; calls and results as text in roles that every template knows."""
    plain = [_as_plain_message(message) for message in messages]
    if not tools:
        return plain
    listed = "\n".join(json.dumps(dict(tool), ensure_ascii=False) for tool in tools)
    instruction = TOOLS_INSTRUCTION.format(tools=listed)
    if plain[0]["role"] == "system":
        return [{"role": "system", "content": f"{plain[0]['content']}\n\n{instruction}"}, *plain[1:]]
    return [{"role": "system", "content": instruction}, *plain]


def _as_plain_message(message: dict[str, Any]) -> dict[str, Any]:
    content, calls = message["content"], message.get("tool_calls") or ()
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    lines = [content] if content else []
    lines += [tool_call_text(call["name"], call["arguments"]) for call in calls]
    return {"role": message["role"], "content": "\n".join(lines)}


def _with_nested_calls(message: dict[str, Any]) -> dict[str, Any]:
    """Calls in the shape that Hugging Face templates read."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [{"type": "function", "function": dict(call)} for call in calls]}


def _cut_behind(rendered: str, text: str) -> str:
    """The rendered conversation up to the end of its last message's text, where the mark stands.

    A mark, since the text itself may stand in what the template writes behind it.

    Raises:
        ChatTemplateError: the last message has no text to continue, or the template changed it.
    """
    until = rendered[: max(rendered.rfind(CUT_MARK), 0)]
    if not text or not until.endswith(text.lstrip()):
        raise ChatTemplateError(
            "continue_final_message needs a last message with text, which the template keeps as it is"
        )
    return until


def _to_json(value: Any, indent: int | None = None) -> str:
    """`tojson` as transformers has it; minijinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> str:
    """`raise_exception(...)` of Hugging Face templates."""
    raise ChatTemplateError(message)
