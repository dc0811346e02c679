"""POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from service.schemas.base import JsonObject, OptionalInteger, Text, TokenLimit, Usage, WireModel, refusal
from service.schemas.field_rules import TOOL_LABELS
from service.schemas.generation import OpenAIFields, StopReason
from service.schemas.messages import MAX_MESSAGES, ChatMessage, ToolName

MAX_TOOLS = 128


class TextFormat(WireModel):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(WireModel):
    """Any JSON object, or, as llama.cpp and others have it, one that fits a schema."""

    type: Literal["json_object"]
    schema_: JsonObject | None = Field(default=None, alias="schema")


class NamedSchema(WireModel):
    """A JSON schema; its name is a label. The answer always fits it; `strict` closes objects that do not say."""

    name: Text = ""
    description: Text | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(WireModel):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def _none_if_empty_list(value: Any) -> Any:
    """No parameters where PHP wrote its empty array."""
    return None if value == [] else value


def refuse_other_tools(tool: Any) -> None:
    """Refuse a tool that is no function of the client's: there are none that the service could run itself."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise refusal("type", f"tools of the type {kind[:80]!r} are not offered here; the only type is 'function'")


def flat_tool_choice(choice: Any) -> Any:
    """A choice as the Responses API has it, from whatever shape clients give it; others are left to be refused."""
    if choice == "any":  # Mistral's and Anthropic's word
        return "required"
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") in ("none", "auto", "required", "any"):
        return flat_tool_choice(choice["type"])
    if choice.get("type") == "allowed_tools":
        raise refusal("type", "allowed_tools is not offered; send only the tools that may be called")
    inner = choice.get("function")
    return {"type": choice.get("type", "function"), **inner} if isinstance(inner, dict) else choice


def nested_tool_choice(choice: Any) -> Any:
    """A choice as chat completions have it."""
    flat = flat_tool_choice(choice)
    if not isinstance(flat, dict) or "name" not in flat:
        return flat
    return {"type": flat.get("type", "function"), "function": {"name": flat["name"]}}


class ToolPart(WireModel):
    """Base of a tool's parts; labels that say nothing about how it is called are dropped."""

    @model_validator(mode="before")
    @classmethod
    def _drop_labels(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if name not in TOOL_LABELS and not name.startswith("x-")}


class Function(ToolPart):
    """A function that the model may call. Arguments fit `parameters`; `strict` closes objects that do not say."""

    name: ToolName
    description: Text | None = None
    parameters: Annotated[JsonObject | None, BeforeValidator(_none_if_empty_list)] = None
    strict: bool | None = None


class Tool(ToolPart):
    """A tool that the model may call."""

    type: Literal["function"] = "function"
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _is_a_function(cls, data: Any) -> Any:
        """Refuse other types by their type, before a part of them is missed; `strict` may stand on either level."""
        refuse_other_tools(data)
        if not isinstance(data, dict):
            return data
        if "function" not in data and "name" in data:  # as the Responses API has tools
            return {"function": {name: value for name, value in data.items() if name != "type"}}
        if isinstance(data.get("function"), dict) and "strict" in data:
            inner = {"strict": data["strict"], **data["function"]}
            data = {name: value for name, value in data.items() if name != "strict"} | {"function": inner}
        return data


class FunctionName(WireModel):
    """The name of a function."""

    name: ToolName


class NamedToolChoice(WireModel):
    """This function must be called."""

    type: Literal["function"] = "function"
    function: FunctionName


class ChatCompletionRequest(OpenAIFields):
    """Answer a conversation."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: TokenLimit = Field(
        default=None,
        description="The newer name of max_tokens; give one of them. Default: what the context holds.",
    )
    logprobs: bool = Field(default=False, description="Return the log-probability of each token of the answer.")
    top_logprobs: OptionalInteger = Field(
        default=None, ge=0, le=20, description="Alternatives to report with each token; needs logprobs: true."
    )
    add_generation_prompt: bool | None = Field(
        default=None, description="Open the assistant's turn. Default: true, unless continue_final_message."
    )
    continue_final_message: bool = Field(
        default=False, description="Go on with the last message instead of answering it."
    )
    response_format: ResponseFormat | None = Field(default=None, description="text, json_object or json_schema.")
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS, description="Functions the model may call.")
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | NamedToolChoice | None, BeforeValidator(nested_tool_choice)
    ] = Field(default=None, description="none, auto (default with tools), required, or one function.")
    parallel_tool_calls: bool = Field(default=True, description="Whether one answer may call several functions.")
    store: Literal[False] = Field(default=False, description="Nothing is stored: false only.")
    service_tier: Literal["auto", "default"] = Field(default="auto", description="There is one tier.")
    modalities: list[Literal["text"]] = Field(default=["text"], min_length=1, max_length=1, description="Text only.")

    @model_validator(mode="after")
    def _fields_fit_together(self) -> "ChatCompletionRequest":
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise refusal("max_tokens", "max_tokens and max_completion_tokens: give one, not both")
        if self.top_logprobs and not self.logprobs:
            raise refusal("top_logprobs", "top_logprobs needs logprobs: true")
        if self.continue_final_message and self.add_generation_prompt:
            raise refusal(
                "add_generation_prompt", "add_generation_prompt and continue_final_message exclude each other"
            )
        self._check_tools()
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise refusal("tools", "tools has two functions of the same name")
        choice = self.tool_choice
        if choice not in (None, "none", "auto") and not names:
            raise refusal("tool_choice", "tool_choice needs tools")
        if isinstance(choice, NamedToolChoice) and choice.function.name not in names:
            raise refusal("tool_choice", f"tool_choice names {choice.function.name!r}, which is not in tools")
        wants_form = self.response_format is not None and self.response_format.type != "text"
        if wants_form and self.guide is not None:
            raise refusal("response_format", f"give response_format or {self.guide_field}, not both")
        if self.guide_field is not None and self.uses_tools:
            raise refusal(self.guide_field, f"{self.guide_field} cannot be given with tools that may be called")
        if self.speculation and (wants_form or self.uses_tools):
            raise refusal("speculation", "speculation cannot be given with response_format or tools")

    @property
    def callable_tools(self) -> list[Tool]:
        """The functions that the answer may call: none, all of them, or the one that is chosen."""
        if not self.uses_tools:
            return []
        name = self.tool_choice.function.name if isinstance(self.tool_choice, NamedToolChoice) else None
        return [tool for tool in self.tools or () if name in (None, tool.function.name)]

    @property
    def uses_tools(self) -> bool:
        """Whether the answer may call a function."""
        return bool(self.tools) and self.tool_choice != "none"


class FunctionCall(BaseModel):
    """A called function; arguments is JSON in a string that fits the function's parameters."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """One call of the answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatAnswer(BaseModel):
    """The message that the model wrote."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class TopLogprob(BaseModel):
    """A token that could have stood here."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatAnswer
    finish_reason: str | None
    stop_reason: StopReason = None
    logprobs: ChatLogprobs | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class ChatCompletionResponse(BaseModel):
    """Body of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
