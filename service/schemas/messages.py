"""The messages of a conversation, as clients send them back: read generously, since they cannot choose what is in them.

A conversation holds our own answers, streamed and put together or dumped by an SDK, and what other servers answered.
Members that no chat template reads are dropped; what must be read is the role, the texts and the calls.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from service.schemas.base import HistoryModel, JsonValue, Text, json_text

MAX_MESSAGES = 2048
MAX_PARTS = 256
MAX_CALLS = 128

ARGUMENT_NAMES = ("arguments", "args", "input", "parameters")  # of calls, by other providers' names
CALL_PARTS = ("tool_use", "tool-call", "tool_call", "function_call")
MEDIA = ("image", "audio", "video", "file", "document", "media")
# With the dots, slashes and colons that MCP servers and gateways put in names, and MCP's length.
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_./:-]{1,128}$")]
TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_text", "summary_text")


class TextPart(HistoryModel):
    """A piece of a message. Attend serves text models: images, sound and files are refused."""

    type: Literal["text", "input_text", "output_text"] = "text"
    text: Text = ""


class RefusalPart(HistoryModel):
    """An earlier answer's refusal, which is text too."""

    type: Literal["refusal"]
    refusal: Text


class ReasoningPart(HistoryModel):
    """An earlier answer's reasoning; templates are not shown it."""

    type: str


def _part_kind(part: Any) -> str | None:
    """The branch of the union below that a part belongs to."""
    if isinstance(part, str):
        return "plain"
    kind = (part.get("type") or "text") if isinstance(part, Mapping) else getattr(part, "type", None)
    if kind in TEXT_PARTS:
        return "text"
    return "reasoning" if kind in REASONING_PARTS else kind if isinstance(kind, str) else None


def _kind_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return kind if isinstance(kind, str) else ""


def _is_foreign(part: Any) -> bool:
    """Whether a part of an answer is another provider's mark, citation or call: nothing that was said or shown."""
    kind = _kind_of(part)
    is_known = kind in ("", "refusal", *TEXT_PARTS, *REASONING_PARTS)
    return not is_known and not any(word in kind for word in MEDIA)


ContentPart = Annotated[
    Annotated[Text, Tag("plain")]
    | Annotated[TextPart, Tag("text")]
    | Annotated[RefusalPart, Tag("refusal")]
    | Annotated[ReasoningPart, Tag("reasoning")],
    Discriminator(
        _part_kind,
        custom_error_type="part_type",
        custom_error_message="a part's type should be 'text', 'input_text', 'output_text', 'refusal' or 'reasoning'; "
        "Attend serves text models, so that images, sound and files have no place",
    ),
]
Parts = Annotated[list[ContentPart], Field(max_length=MAX_PARTS, fail_fast=True)]
Content = Text | Parts


def _json_text(value: Any) -> Any:
    """A result that is JSON, and neither text nor parts, as text; the answer of a function may be anything."""
    is_parts = isinstance(value, list) and all(
        isinstance(item, str) or (isinstance(item, Mapping) and "type" in item) for item in value
    )
    if value is None or isinstance(value, str) or is_parts:
        return value
    return json_text(value)


Result = Annotated[Content, BeforeValidator(_json_text)]


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

    name: Text = ""
    arguments: JsonValue = ""


class ToolCallMessage(HistoryModel):
    """A call that an earlier answer made, of this model or of another, in whichever shape it was kept."""

    id: Text = ""
    function: CalledFunction

    @model_validator(mode="before")
    @classmethod
    def _is_a_function(cls, data: Any) -> Any:
        """Calls of custom tools, whose only argument is their input, and calls without an object of their own."""
        if not isinstance(data, dict):
            return data
        if not isinstance(data.get("id"), str):
            data = {**data, "id": str(data["id"]) if isinstance(data.get("id"), int) else ""}
        custom = data.get("custom")
        if isinstance(custom, dict):
            return {**data, "function": {"name": custom.get("name"), "arguments": {"input": custom.get("input") or ""}}}
        if "function" not in data and "name" in data:
            given = [data[name] for name in ARGUMENT_NAMES if data.get(name) is not None]
            return {**data, "function": {"name": data["name"], "arguments": given[0] if given else ""}}
        return data


class InstructionMessage(HistoryModel):
    """Instructions for the model; `developer` is the newer name of `system`."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(HistoryModel):
    """A person's words."""

    role: Literal["user"]
    content: Content


class AssistantMessage(HistoryModel):
    """The model's answer: text, calls, both, or nothing where it was cut before its first word."""

    role: Literal["assistant"]
    content: Content = ""
    tool_calls: list[ToolCallMessage] = Field(default=[], max_length=MAX_CALLS)

    @model_validator(mode="before")
    @classmethod
    def _read_older_and_foreign_forms(cls, data: Any) -> Any:
        """The older name of a single call, calls among the parts, and a refusal where nothing else was said."""
        if not isinstance(data, dict):
            return data
        parts = data["content"] if isinstance(data.get("content"), list) else []
        calls = data.get("tool_calls") or [part for part in parts if _kind_of(part) in CALL_PARTS]
        if not calls and data.get("function_call"):
            calls = [{"function": data["function_call"]}]
        data = {**data, "tool_calls": calls or []}
        if parts:
            data["content"] = [part for part in parts if not _is_foreign(part)]
        if data.get("refusal") is not None and not data.get("content"):
            data["content"] = data["refusal"]
        return data


class ToolMessage(HistoryModel):
    """The result of a called function; `function` is the older name of the role."""

    role: Literal["tool", "function"]
    content: Result = ""
    tool_call_id: Text = ""


ChatMessage = Annotated[InstructionMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
