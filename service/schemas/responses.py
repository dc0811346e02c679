"""POST /v1/responses: OpenAI's newer API, for text and functions. Nothing is stored between requests."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, model_validator

from service.schemas.base import HistoryModel, JsonObject, JsonValue, Seed, Text, TokenLimit, WireModel, refusal
from service.schemas.chat import (
    MAX_TOOLS,
    Function,
    JsonObjectFormat,
    TextFormat,
    Tool,
    flat_tool_choice,
    refuse_other_tools,
)
from service.schemas.generation import EngineFields, GenerationFields, Label
from service.schemas.messages import (
    MAX_CALLS,
    MAX_MESSAGES,
    AssistantMessage,
    CalledFunction,
    ChatMessage,
    InstructionMessage,
    Result,
    ToolCallMessage,
    ToolMessage,
    ToolName,
    UserMessage,
    text_of,
)

SILENT_ITEMS = ("reasoning", "compaction", "mcp_list_tools", "web_search_call", "file_search_call")


class MessageItem(HistoryModel):
    """What somebody said; an earlier answer's own item may be sent back as it was."""

    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer", "assistant", "tool", "function"]
    content: Result = ""
    tool_calls: list[ToolCallMessage] = Field(default=[], max_length=MAX_CALLS)
    tool_call_id: Text = ""

    @model_validator(mode="after")
    def _says_something(self) -> "MessageItem":
        """Only an answer or a result may be empty."""
        if self.role in ("user", "system", "developer") and "content" not in self.model_fields_set:
            raise refusal("content", "content is missing")
        return self

    @property
    def message(self) -> ChatMessage:
        """The same as a message of a chat."""
        text = text_of(self.content)
        if self.role == "user":
            return UserMessage(role="user", content=text)
        if self.role == "assistant":
            return AssistantMessage(role="assistant", content=text, tool_calls=list(self.tool_calls))
        if self.role in ("tool", "function"):
            return ToolMessage(role="tool", content=text, tool_call_id=self.tool_call_id)
        return InstructionMessage(role="system", content=text)


class FunctionCallItem(HistoryModel):
    """A call that an earlier answer made."""

    type: Literal["function_call", "custom_tool_call"]
    call_id: Text = ""
    name: Text = ""
    arguments: JsonValue = ""
    input: Text | None = None  # of a custom tool: its only argument


class FunctionOutputItem(HistoryModel):
    """The result of a called function."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Text = ""
    output: Result = ""


class SilentItem(HistoryModel):
    """An earlier answer's reasoning, a search of its own and the like: nothing that is shown to this model."""

    type: str


def _item_type(item: Any) -> str | None:
    """The branch of the union below that an item belongs to; a message need not name its type."""
    kind = (item.get("type") or "message") if isinstance(item, dict) else getattr(item, "type", None)
    if not isinstance(kind, str):
        return None
    return "reasoning" if kind in SILENT_ITEMS else kind.replace("custom_tool_call", "function_call")


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[SilentItem, Tag("reasoning")],
    Discriminator(
        _item_type,
        custom_error_type="item_type",
        custom_error_message="type should be 'message', 'function_call', 'function_call_output' or 'reasoning'; "
        "nothing is stored, so an item_reference leads nowhere: send the item itself",
    ),
]


class SchemaFormat(WireModel):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    name: Text = ""
    description: Text | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class TextOptions(WireModel):
    """The form of the answer's text."""

    verbosity: Literal["medium"] | None = Field(
        default=None, description="Answers are as long as the model makes them: use max_output_tokens, or ask for it."
    )
    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] = Field(
        default=TextFormat(type="text")
    )


class FunctionTool(Function):
    """A function that the model may call."""

    type: Literal["function"] = "function"

    @model_validator(mode="before")
    @classmethod
    def _is_a_function(cls, data: Any) -> Any:
        """Refuse other types by their type, before a part of them is missed; chat's shape is taken apart."""
        refuse_other_tools(data)
        inner = data.get("function") if isinstance(data, dict) else None
        if isinstance(inner, dict):
            return {**{name: value for name, value in data.items() if name != "function"}, **inner}
        return data


class FunctionChoice(WireModel):
    """This function must be called."""

    type: Literal["function"] = "function"
    name: ToolName


class ResponsesRequest(EngineFields):
    """Answer an input."""

    model: Text = Field(description="The served model's id.")
    input: Text | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)] = Field(
        description="A text, or the whole conversation so far as a list of items."
    )
    instructions: Text | None = Field(default=None, description="A system message in front of the input.")
    max_output_tokens: TokenLimit = Field(
        default=None, description="Most tokens to generate. Default: what the context holds."
    )
    temperature: float = Field(default=1.0, ge=0, le=2, description="0 takes the most likely token; up to 2.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Sample among the likeliest tokens of this joint mass.")
    stream: bool = Field(default=False, description="Send the answer as server-sent events while it is made.")
    text: TextOptions = Field(default=TextOptions(), description="format: text, json_object or json_schema.")
    tools: list[FunctionTool] = Field(default=[], max_length=MAX_TOOLS, description="Functions the model may call.")
    tool_choice: Annotated[Literal["none", "auto", "required"] | FunctionChoice, BeforeValidator(flat_tool_choice)] = (
        Field(default="auto", description="none, auto, required, or one function.")
    )
    parallel_tool_calls: bool = Field(default=True, description="Whether one answer may call several functions.")
    truncation: Literal["disabled"] = Field(default="disabled", description="Inputs that do not fit are refused.")
    store: Literal[False] = Field(default=False, description="Nothing is stored: false only.")
    background: Literal[False] = Field(default=False, description="Answers are made while you wait: false only.")
    service_tier: Literal["auto", "default"] = Field(default="auto", description="There is one tier.")
    metadata: JsonObject = Field(default={}, description="Labels of yours, returned with the answer.")
    user: Label | None = Field(default=None, description="Your end user's name, for the request log.")
    safety_identifier: Label | None = Field(default=None, description="The newer name of user.")
    seed: Seed = Field(default=None, description="Same seed, same request: same answer. Random if -1 or not given.")

    @model_validator(mode="after")
    def _fields_fit_together(self) -> "ResponsesRequest":
        is_silent = isinstance(self.input, list) and all(isinstance(item, SilentItem) for item in self.input)
        if self.instructions is None and is_silent:
            raise refusal("input", "input has nothing to answer; give a text, or items with at least one message")
        names = [tool.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise refusal("tools", "tools has two functions of the same name")
        if self.tool_choice == "required" and not names:
            raise refusal("tool_choice", "tool_choice needs tools")
        if isinstance(self.tool_choice, FunctionChoice) and self.tool_choice.name not in names:
            raise refusal("tool_choice", f"tool_choice names {self.tool_choice.name!r}, which is not in tools")
        has_form = self.text.format.type != "text"
        if has_form and self.guide is not None:
            raise refusal("text.format", f"give text.format or {self.guide_field}, not both")
        if self.guide_field is not None and self.uses_tools:
            raise refusal(self.guide_field, f"{self.guide_field} cannot be given with tools that may be called")
        if self.speculation and (has_form or self.uses_tools):
            raise refusal("speculation", "speculation cannot be given with text.format or tools")
        return self

    @property
    def uses_tools(self) -> bool:
        """Whether the answer may call a function."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def chat_tools(self) -> list[Tool]:
        """The functions that may be called, as chat completions have them."""
        chosen = self.tool_choice.name if isinstance(self.tool_choice, FunctionChoice) else None
        tools = [tool for tool in self.tools if chosen in (None, tool.name)] if self.uses_tools else []
        return [Tool(type="function", function=Function(**tool.model_dump(exclude={"type"}))) for tool in tools]

    @property
    def chat_messages(self) -> list[ChatMessage]:
        """Instructions and input as chat completions have them; calls join the assistant message before them."""
        messages: list[ChatMessage] = []
        if self.instructions is not None:
            messages.append(InstructionMessage(role="system", content=self.instructions))
        items = [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        for item in items:
            last = messages[-1] if messages else None
            if isinstance(item, FunctionCallItem):
                arguments = item.arguments if item.input is None else {"input": item.input}
                function = CalledFunction(name=item.name, arguments=arguments)
                call = ToolCallMessage(id=item.call_id, function=function)
                if isinstance(last, AssistantMessage):
                    last.tool_calls = [*last.tool_calls, call]
                else:
                    messages.append(AssistantMessage(role="assistant", tool_calls=[call]))
            elif isinstance(item, FunctionOutputItem):
                messages.append(ToolMessage(role="tool", tool_call_id=item.call_id, content=text_of(item.output)))
            elif isinstance(item, MessageItem):
                messages.append(item.message)
        return messages

    @property
    def fields(self) -> GenerationFields:
        """The sampling fields as the other routes have them."""
        own = {name: getattr(self, name) for name in EngineFields.model_fields}
        shared = ("temperature", "top_p", "seed", "stream", "user", "safety_identifier")
        return GenerationFields(**own, **{name: getattr(self, name) for name in shared})


class OutputText(BaseModel):
    """A piece of the answer's text."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = Field(default_factory=list)
    logprobs: list[Any] = Field(default_factory=list)


class OutputMessage(BaseModel):
    """The answer's message."""

    type: Literal["message"] = "message"
    id: str
    status: str
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputCall(BaseModel):
    """A call of the answer."""

    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str
    name: str
    arguments: str
    status: str


class InputTokensDetails(BaseModel):
    """cached_tokens: input tokens that were not computed. cache_write_tokens: keeping tokens is not charged for."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """There are no reasoning tokens."""

    reasoning_tokens: int = 0


class ResponsesUsage(BaseModel):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails = Field(default_factory=OutputTokensDetails)
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why an answer is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponsesResponse(BaseModel):
    """Body of /v1/responses."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: None = None
    store: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponsesUsage | None
    user: str | None
    metadata: dict[str, Any] = Field(default_factory=dict)
    prompt_logprobs: list[dict[str, Any] | None] | None = None
