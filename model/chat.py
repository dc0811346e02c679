"""Chat messages -> prompt text, through the model's own template in a sandbox.

Separate from the API because it is the model that knows how it was taught to chat. Templates come from bundles only,
never from requests; `minijinja` runs them with bounded fuel and without access to Python.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import minijinja

FUEL = 1_000_000  # template instructions; a 1,000-message conversation takes a few tens of thousands


class ChatTemplateError(ValueError):
    """The template is broken, or refuses these messages; the message is one line."""


class ChatTemplate:
    """A bundle's chat template, compiled once."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile.

        Raises:
            ChatTemplateError: the source is not a template.
        """
        self._special_tokens = dict(special_tokens)
        self._environment = minijinja.Environment(
            trim_blocks=True, lstrip_blocks=True, fuel=FUEL, pycompat=True, undefined_behavior="lenient"
        )
        self._environment.add_global("raise_exception", _raise_exception)
        self._environment.add_filter("tojson", _to_json)
        try:
            self._environment.add_template("chat", source)
        except minijinja.TemplateError as error:
            raise ChatTemplateError(f"the chat template does not compile: {error.message}") from error

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The prompt for a conversation.

        messages: each with `role` and `content` text. add_generation_prompt: end with the opening of the answer.

        Raises:
            ChatTemplateError: the template refuses the conversation, or it exceeds the template's fuel.
        """
        try:
            values = {
                **self._special_tokens,
                "messages": [dict(message) for message in messages],
                "add_generation_prompt": add_generation_prompt,
                "tools": None,  # as transformers does: templates ask whether it is none
                "documents": None,
            }
            return self._environment.render_template("chat", **values)
        except Exception as error:  # whatever the template did: a call may raise any type
            message = error.message if isinstance(error, minijinja.TemplateError) else str(error)
            line = " ".join(message.split())
            raise ChatTemplateError(f"the model's chat template refuses these messages: {line}") from error


def _to_json(value: Any, indent: int | None = None) -> str:
    """`tojson` as transformers has it; minijinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> str:
    """`raise_exception(...)` of Hugging Face templates."""
    raise ChatTemplateError(message)
