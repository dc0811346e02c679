"""From text or messages to token ids: the chat template, tokenising off the event loop, truncation.

Separate from the generator because /tokenize does the same without generating.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from model.chat import ChatTemplate, ChatTemplateError
from model.tokenizer import Tokenizer
from service.engine.request_check import CONTEXT_EXCEEDED, InvalidRequestError
from service.schemas.chat import Tool
from service.schemas.messages import AssistantMessage, ChatMessage, ToolCallMessage, ToolMessage, text_of

LONG_TEXT_CHARACTERS = 20_000  # longer texts are tokenised off the event loop, which must keep streams flowing


NEWER_ROLES = {"developer": "system", "function": "tool"}  # roles that templates know by another name


@dataclass(frozen=True)
class Prompt:
    """A prompt's token ids. text: as it was given, None where ids were given."""

    ids: tuple[int, ...]
    text: str | None = None


@dataclass(frozen=True)
class PromptMaker:
    """Makes prompts for one model."""

    model_id: str
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    context_tokens: int
    _one_long_text: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    async def of(
        self, prompt: str | Sequence[int], truncate_to: int | None = None, *, parse_special: bool = True
    ) -> Prompt:
        """A plain prompt, text or token ids. parse_special: control tokens that the text spells are control tokens.

        Raises:
            InvalidRequestError: the text could not fit, however it is cut into tokens.
        """
        if not isinstance(prompt, str):
            return Prompt(_truncated(tuple(prompt), truncate_to))
        ids = await self.encode(prompt, parse_special=parse_special, may_be_cut=truncate_to is not None)
        kept = _truncated(tuple(ids), truncate_to)
        return Prompt(kept, prompt if len(kept) == len(ids) else self.tokenizer.decode(kept, skip_special_tokens=False))

    async def of_messages(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        truncate_to: int | None = None,
    ) -> Prompt:
        """A conversation, rendered with the model's template. Whatever its contents spell, they are plain text.

        Raises:
            InvalidRequestError: the model has no template, or the messages cannot be used.
        """
        if self.chat_template is None:
            message = f"model {self.model_id!r} has no chat template; use /v1/completions"
            raise InvalidRequestError(message, "prompt", "no_chat_template")
        try:
            pieces = self.chat_template.pieces(
                [_template_message(message) for message in messages],
                tools=[tool.function.model_dump(exclude_none=True, exclude={"strict"}) for tool in tools],
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        except ChatTemplateError as error:  # `blaming` names the field that holds this route's messages
            raise InvalidRequestError(str(error), "prompt") from error
        rendered = "".join(pieces)
        tokenize = partial(self.tokenizer.encode_pieces, pieces, add_special_tokens=add_special_tokens)
        ids = await self._tokenized(rendered, tokenize, may_be_cut=truncate_to is not None)
        return Prompt(_truncated(tuple(ids), truncate_to), rendered)

    async def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True, may_be_cut: bool = False
    ) -> list[int]:
        """Token ids of a text, refused unread if no tokens of the model could make it fit.

        Raises:
            InvalidRequestError: the text is too long.
        """
        tokenize = partial(
            self.tokenizer.encode, text, add_special_tokens=add_special_tokens, parse_special=parse_special
        )
        return await self._tokenized(text, tokenize, may_be_cut=may_be_cut)

    async def _tokenized(self, text: str, tokenize: Callable[[], list[int]], *, may_be_cut: bool) -> list[int]:
        limit = self.context_tokens * self.tokenizer.longest_token_characters
        if len(text) > limit and not may_be_cut:
            message = (
                f"the prompt has {len(text)} characters; the context of {self.context_tokens} tokens "
                f"cannot hold more than {limit}"
            )
            raise InvalidRequestError(message, "prompt", CONTEXT_EXCEEDED)
        if len(text) < LONG_TEXT_CHARACTERS:
            return tokenize()
        async with self._one_long_text:
            return await asyncio.to_thread(tokenize)


def _truncated(ids: tuple[int, ...], truncate_to: int | None) -> tuple[int, ...]:
    """The last tokens; an explicit 0 keeps none, and the empty prompt is then refused like any other."""
    if truncate_to is None or len(ids) <= truncate_to:
        return ids
    return ids[len(ids) - truncate_to :]


def _template_message(message: ChatMessage) -> dict[str, Any]:
    """A message as templates read it."""
    role = NEWER_ROLES.get(message.role, message.role)
    plain: dict[str, Any] = {"role": role, "content": text_of(message.content)}
    if isinstance(message, ToolMessage):
        plain["tool_call_id"] = message.tool_call_id
    if isinstance(message, AssistantMessage) and message.tool_calls:
        plain["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    return plain


def _template_call(call: ToolCallMessage) -> dict[str, Any]:
    """A call as templates read it. Arguments that are no object, as of an answer that was cut, count as none."""
    arguments: Any = call.function.arguments
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return {"id": call.id, "name": call.function.name, "arguments": arguments if isinstance(arguments, dict) else {}}
