"""The messages of a conversation, as clients send them back: read generously, since they cannot choose what is in them.

A conversation holds our own answers, streamed and put together or dumped by an SDK, and what other servers answered.
Members that no chat template reads are dropped; what must be read is the role, the texts and the calls.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from service.schemas.base import HistoryModel, JsonValue, Text

MAX_MESSAGES = 2048
MAX_PARTS = 256
MAX_CALLS = 128

# With the dots, slashes and colons that MCP servers and gateways put in names, and MCP's length.
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_./:-]{1,128}$")]
TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_text", "summary_text")


class TextPart(HistoryModel):
    """A piece of a message. Attend serves text models: images, sound and files are refused."""

    type: Literal["text", "input_text", "output_text"] = "text"
    text: Text


class RefusalPart(HistoryModel):
    """An earlier answer's refusal, which is text too."""

    type: Literal["refusal"]
    refusal: Text


class ReasoningPart(HistoryModel):
    """An earlier answer's reasoning; templates are not shown it."""

    type: Literal["thinking", "redacted_thinking", "reasoning", "reasoning_text", "summary_text"]


def _part_kind(part: Any) -> str | None:
    """The branch of the union below that a part belongs to."""
    if isinstance(part, str):
        return "plain"
    kind = part.get("type", "text") if isinstance(part, Mapping) else getattr(part, "type", None)
    if kind in TEXT_PARTS:
        return "text"
    return "reasoning" if kind in REASONING_PARTS else kind if isinstance(kind, str) else None


ContentPart = Annotated[
    Annotated[Text, Tag("plain")]
    | Annotated[TextPart, Tag("text")]
    | Annotated[RefusalPart, Tag("refusal")]
    | Annotated[ReasoningPart, Tag("reasoning")],
    Discriminator(
        _part_kind,
        custom_error_type="part_type",
        custom_error_message="Attend serves text models; a part's type should be 'text', 'input_text', 'output_text', "
        "'refusal' or 'reasoning'",
    ),
]
Parts = Annotated[list[ContentPart], Field(max_length=MAX_PARTS, fail_fast=True)]
Content = Text | Annotated[Parts, Field(min_length=1)]
AnswerContent = Text | Parts


def text_of(content: str | list[Any]) -> str:
    """The text of a message or a result, whichever way it was given; the parts of a list are put together."""
    return content if isinstance(content, str) else "".join(map(_text_of_part, content))


def _text_of_part(part: str | TextPart | RefusalPart | ReasoningPart) -> str:
    match part:
        case str():
            return part
        case TextPart():
            return part.text
        case RefusalPart():
            return part.refusal
    return ""


class CalledFunction(HistoryModel):
    """A function and its arguments: JSON in a string, or taken apart; of a call that was cut, whatever there is."""

    name: ToolName
    arguments: JsonValue = ""


class ToolCallMessage(HistoryModel):
    """A call that an earlier answer made."""

    id: Text = ""
    type: Literal["function"] = "function"
    function: CalledFunction

    @model_validator(mode="before")
    @classmethod
    def _custom_is_function(cls, data: Any) -> Any:
        """A call of a custom tool is one whose only argument is its input."""
        custom = data.get("custom") if isinstance(data, dict) else None
        if not isinstance(custom, dict):
            return data
        function = {"name": custom.get("name"), "arguments": {"input": custom.get("input") or ""}}
        return {"id": data.get("id"), "function": function}


class InstructionMessage(HistoryModel):
    """What the model is told to be; `developer` is the newer name of `system`."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(HistoryModel):
    """What a person says."""

    role: Literal["user"]
    content: Content


class AssistantMessage(HistoryModel):
    """What the model said: text, calls, both, or nothing where an answer was cut before its first word."""

    role: Literal["assistant"]
    content: AnswerContent = ""
    tool_calls: list[ToolCallMessage] = Field(default=[], max_length=MAX_CALLS)

    @model_validator(mode="before")
    @classmethod
    def _function_call_is_a_call(cls, data: Any) -> Any:
        """The older name of a single call; a refusal is what was said where there is nothing else."""
        if not isinstance(data, dict):
            return data
        if data.get("function_call") is not None and not data.get("tool_calls"):
            data = {**data, "tool_calls": [{"function": data["function_call"]}]}
        if data.get("refusal") is not None and not data.get("content"):
            data = {**data, "content": data["refusal"]}
        return data


class ToolMessage(HistoryModel):
    """What a called function gave back; `function` is the older name of the role."""

    role: Literal["tool", "function"]
    content: AnswerContent = ""
    tool_call_id: Text = ""


ChatMessage = Annotated[InstructionMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
