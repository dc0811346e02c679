"""Chat messages -> prompt, through the model's own template in a sandbox.

Separate from the API because it is the model that knows how it was taught to chat. Templates come from bundles only,
never from requests. What messages, tools and documents spell stays text: see docs/adr/0017-contents-are-plain-text.md.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

import minijinja

from model.control_tokens import ControlTokenError, ControlTokens, Disguise, exchanged, strings_in
from model.errors import UserError
from model.template_environment import environment_of, values_of
from model.template_source import with_tests_of
from model.tool_messages import Message, ToolForm, tool_call_text, usable_forms

__all__ = ["CUT_MARK", "ChatTemplate", "ChatTemplateError", "tool_call_text"]

CUT_MARK = "<continue from here>"
FIXED = ("role",)  # members of a message that the API has checked, not a client's text


class ChatTemplateError(UserError, ValueError):
    """The template is broken, or refuses these messages; the message is one line."""


@dataclass(frozen=True)
class _Conversation:
    """A conversation to render, before it has taken the template's shapes."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    now: datetime = field(default_factory=lambda: datetime.now().astimezone())

    @property
    def contents(self) -> list[Any]:
        """Everything that a client has written."""
        calls = [call for message in self.messages for call in message.get("tool_calls") or ()]
        messages = [_without(message, *FIXED, "tool_calls") for message in self.messages]
        return [value for written in (*messages, *calls, *self.tools) for value in written.values()]

    def disguised(self, disguise: Disguise) -> "_Conversation":
        """The same with every content in disguise."""

        def hide(written: Mapping[str, Any]) -> Message:
            return {name: value if name in FIXED else disguise.hide(value) for name, value in written.items()}

        messages = [
            {**hide(_without(message, "tool_calls")), "tool_calls": [hide(call) for call in message["tool_calls"]]}
            if message.get("tool_calls")
            else hide(message)
            for message in self.messages
        ]
        return replace(self, messages=messages, tools=[hide(tool) for tool in self.tools])


class ChatTemplate:
    """A bundle's chat template, compiled once."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], control_tokens: ControlTokens | None = None
    ) -> None:
        """Compile. control_tokens: those of the model's tokenizer, which contents must not make.

        Raises:
            ChatTemplateError: the source is not a template.
        """
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._control_tokens = control_tokens or ControlTokens()
        try:
            self._environment = environment_of(source)
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
        """The text of the prompt that `pieces` makes."""
        return "".join(
            self.pieces(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        )

    def pieces(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[str]:
        """The prompt for a conversation: text, control token, text and so on; all else that is spelled is text.

        messages: each with `role` and `content` text; an assistant's may have `tool_calls` of `{"name", "arguments"}`.
        tools: each `{"name", "description", "parameters"}`. A template that knows nothing of tools gets them as text.
        add_generation_prompt: end with the opening of the answer. continue_final_message: end inside the last message.

        Raises:
            ChatTemplateError: the template refuses the conversation, or it exceeds the template's fuel.
        """
        opens_answer = add_generation_prompt and not continue_final_message
        asked = _Conversation(messages, tools, opens_answer, continue_final_message)
        has_calls = bool(tools) or any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
        form, conversation, text = self._first_rendered(asked, self.tool_forms if has_calls else (None,))
        try:
            disguise = self._control_tokens.disguise(
                strings_in(conversation.contents), (self.source, *self._special_tokens.values())
            )
        except ControlTokenError as error:
            raise ChatTemplateError(str(error)) from error
        if disguise is None:
            return self._control_tokens.split(text)
        hidden = self._render_disguised(conversation, form, disguise, text)
        return [disguise.reveal(piece) for piece in self._control_tokens.split(hidden)]

    @cached_property
    def tool_forms(self) -> tuple[ToolForm, ...]:
        """The forms in which this template is given tools, calls and results, best first."""

        def renders(form: ToolForm, messages: Any, tools: Any) -> str | None:
            try:
                return self._render(self._environment, _Conversation(form.identified(messages), tools), form)
            except ChatTemplateError:
                return None

        return usable_forms(re.search(r"\btools\b", self.source) is not None, renders)

    def _first_rendered(
        self, asked: _Conversation, forms: Sequence[ToolForm | None]
    ) -> tuple[ToolForm | None, _Conversation, str]:
        """The first form that the template takes, the conversation with ids for it, and the text.

        Raises:
            ChatTemplateError: it refuses them all; the reason is that of the first.
        """
        refusal: ChatTemplateError | None = None
        for form in forms:
            conversation = asked if form is None else replace(asked, messages=form.identified(asked.messages))
            try:
                return form, conversation, self._render(self._environment, conversation, form)
            except ChatTemplateError as error:
                refusal = refusal or error
        assert refusal is not None, "there is a form, if only none"
        raise refusal

    def _render_disguised(
        self, conversation: _Conversation, form: ToolForm | None, disguise: Disguise, expected: str
    ) -> str:
        """The prompt with contents in disguise. A template that looks into contents may see the disguise.

        Where it does, the marks that it looks for are disguised as well; where even that makes a difference, its
        prompt for the disguised contents stands, since what it makes of them may not be told apart.

        Raises:
            ChatTemplateError: the template refuses disguised contents.
        """
        disguised = conversation.disguised(disguise)
        try:
            hidden = self._render(self._environment, disguised, form, disguise)
        except ChatTemplateError:
            hidden = None
        if hidden is not None and disguise.reveal(hidden) == expected:
            return hidden
        return self._render(_looking_for(self.source, disguise.marks), disguised, form, disguise)

    def _render(
        self,
        environment: minijinja.Environment,
        conversation: _Conversation,
        form: ToolForm | None,
        disguise: Disguise | None = None,
    ) -> str:
        messages = [dict(message) for message in conversation.messages]
        tools: list[Message] = []
        if form is not None:
            messages, tools = form.shaped(messages, conversation.tools)
        begun = messages[-1]["content"].rstrip()
        if conversation.continue_final_message:
            messages[-1] = {**messages[-1], "content": begun + CUT_MARK}
        values = {
            **self._special_tokens,
            "messages": messages,
            "add_generation_prompt": conversation.add_generation_prompt,
            "tools": tools or None,  # none where there are none, as transformers does: templates ask
            "documents": None,
        }
        stand_ins = frozenset() if disguise is None else disguise.stand_ins
        try:
            text = str(environment.render_template("chat", **values_of(values, conversation.now, stand_ins)))
        except Exception as error:  # whatever the template did: a call may raise any type
            message = error.message if isinstance(error, minijinja.TemplateError) else str(error)
            line = " ".join(message.split())
            raise ChatTemplateError(f"the model's chat template refuses these messages: {line}") from error
        return _cut_behind(text, begun) if conversation.continue_final_message else text


@lru_cache(maxsize=8)  # a service has one template, and nearly always the same stand-ins
def _looking_for(source: str, marks: tuple[tuple[str, str], ...]) -> minijinja.Environment:
    """A template that looks for disguised marks."""
    return environment_of(with_tests_of(source, lambda text: exchanged(text, marks)))


def _without(written: Mapping[str, Any], *names: str) -> Message:
    return {name: value for name, value in written.items() if name not in names}


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
